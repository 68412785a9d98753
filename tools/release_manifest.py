"""What ``check`` built and approved: names, versions, hashes. ``publish`` uploads that and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from release_refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltFile:
    """One archive.

    Attributes:
        name: Its file name, in the folder of its distribution.
        sha256: Of its bytes, in hexadecimal digits.
        bytes: How many.
    """

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One distribution.

    Attributes:
        name: Canonical name, and that of its folder.
        version: Its version.
        tested: Resolutions that its tests passed at: ``highest``, ``lowest-direct``.
        files: Its wheels and its source distribution, in the order of upload.
    """

    name: str
    version: str
    tested: tuple[str, ...]
    files: tuple[BuiltFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that was built in one run.

    Attributes:
        commit: What it was built from.
        distributions: In dependency order.
    """

    commit: str
    distributions: tuple[Built, ...]


def describe(path: Path) -> BuiltFile:
    """What the file at ``path`` is."""
    content = path.read_bytes()
    return BuiltFile(name=path.name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write it beside what it lists; returns its own SHA-256, which another machine can hold it to."""
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path, sha256: str | None = None) -> Manifest:
    """The manifest in ``folder``, which must have the hash ``sha256`` if one is given.

    Raises:
        RefusedError: There is none, it has another hash, or it does not read as one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RefusedError(f"{path}: not there: `release.py check` writes it")
    content = path.read_bytes()
    if sha256 is not None and (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise RefusedError(f"{path}: has sha256 {got}, and {sha256} is wanted: it is not what was checked")
    try:
        document = json.loads(content)
        distributions = tuple(
            Built(
                name=each["name"],
                version=each["version"],
                tested=tuple(each["tested"]),
                files=tuple(BuiltFile(**file) for file in each["files"]),
            )
            for each in document["distributions"]
        )
        return Manifest(commit=document["commit"], distributions=distributions)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{path}: not a manifest: {error!r}: check again") from error


def differing_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """One line for each file of ``folder`` that is not what the manifest says."""
    for built in manifest.distributions:
        wanted = {file.name: file for file in built.files}
        there = {path.name: path for path in (folder / built.name).glob("*") if is_archive(path)}
        for name in sorted(wanted.keys() - there.keys()):
            yield f"{built.name}/{name}: was checked, and is not there: check again"
        for name in sorted(there.keys() - wanted.keys()):
            yield f"{built.name}/{name}: was never checked: remove it"
        for name in sorted(wanted.keys() & there.keys()):
            if (got := describe(there[name])) != wanted[name]:
                what = f"has sha256 {got.sha256}, and {wanted[name].sha256} was checked"
                yield f"{built.name}/{name}: {what}: it was changed since; check again"


def is_archive(path: Path) -> bool:
    """Whether ``path`` is something that an index takes as a release."""
    return path.name.endswith((".whl", ".tar.gz"))
