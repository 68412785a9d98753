"""The last release of a distribution on an index, unpacked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from release_index import Index
from release_refusal import RefusedError

if TYPE_CHECKING:
    from pathlib import Path


def latest_published(index: str, name: str) -> str | None:
    """The highest version of ``name`` on the index at ``index`` that is no pre-release; None if there is none.

    Raises:
        RefusedError: The index does not answer.
    """
    versions = [version for version in Index(index).versions(name) if not version.is_prerelease]
    return str(max(versions)) if versions else None


def fetch_published(index: str, name: str, folder: Path) -> str | None:
    """Unpack the last release of ``name`` into ``folder``; returns its version, or None if there is none.

    Raises:
        RefusedError: The index does not answer, or what it has cannot be installed here.
    """
    version = latest_published(index, name)
    if version is None:
        return None
    command = ["uv", "--quiet", "--no-config", "pip", "install", "--no-cache", "--no-deps", "--no-build"]
    place = ["--target", str(folder), "--python", sys.executable, "--default-index", index]
    done = subprocess.run([*command, *place, f"{name}=={version}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"{index}: {name} {version}: {done.stderr.strip()}")
    return version
