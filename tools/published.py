"""What an index has of a distribution, asked through uv, which knows every kind of index."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from release_refusal import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

_UNKNOWN = "was not found in the package registry"


class NotPublishedError(Exception):
    """The index has no release of that name."""


def latest_published(index: str, name: str) -> str:
    """The highest release of ``name`` on the index at ``index``, pre-releases left out unless there is nothing else.

    Raises:
        NotPublishedError: There is none.
        RefusedError: The index does not answer, or with something that uv does not understand.
    """
    command = ["pip", "compile", "-", "--no-deps", "--no-header", "--no-annotate"]
    done = _uv([*command, "--default-index", index], given=name)
    if _UNKNOWN in done.stderr:
        raise NotPublishedError(name)
    if done.returncode != 0:
        raise RefusedError(f"{index}: {done.stderr.strip()}")
    return done.stdout.strip().partition("==")[2]


def fetch_published(index: str, name: str, folder: Path) -> str:
    """Unpack the highest release of ``name`` into ``folder``; returns its version.

    Raises:
        NotPublishedError: There is none.
        RefusedError: The index does not answer, or what it has cannot be installed here.
    """
    version = latest_published(index, name)
    command = ["pip", "install", "--no-deps", "--target", str(folder), "--python", sys.executable]
    done = _uv([*command, "--default-index", index, f"{name}=={version}"])
    if done.returncode != 0:
        raise RefusedError(f"{index}: {name} {version}: {done.stderr.strip()}")
    return version


def _uv(arguments: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    command = ["uv", "--quiet", "--no-config", *arguments, "--no-cache"]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)
