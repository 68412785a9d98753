"""Build one distribution as a release has it: the source distribution, and every wheel from that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from check_library import check_library_wheel
from check_wheel import check_wheel
from release_git import git
from release_refusal import RefusedError
from workspace import table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message
    from pathlib import Path

    from workspace import Member

BACKENDS = PurePosixPath(".github/requirements/backends.txt")
"""Hashes of the build backends: a tree that has this file builds with nothing else."""

_OBJECTS = "PIO_KERNELS_BUILD"
_IN_SOURCE = ("PKG-INFO", "pyproject.toml", "README.md", "LICENSE")


def platforms(member: Member) -> dict[str, str]:
    """Targets and platform tags of its wheels, ``[tool.pio-workspace.platform-wheels]``; empty for one pure wheel."""
    targets = table(member.document, "tool", "pio-workspace", "platform-wheels", "targets")
    return {target: str(tag) for target, tag in targets.items()}


def release_files(member: Member) -> list[str]:
    """Names of the files that a release of ``member`` has, in the order of upload.

    Wheels before the source: an interrupted upload never leaves people to build what will come as a wheel.
    """
    stem = f"{canonicalize_name(member.name).replace('-', '_')}-{member.version}"
    tags = sorted(platforms(member).values()) or ["any"]
    return [*(f"{stem}-py3-none-{tag}.whl" for tag in tags), f"{stem}.tar.gz"]


def build(root: Path, member: Member, folder: Path) -> list[Path]:
    """Build into ``folder``, which is emptied; returns the files in the order of upload.

    The same commit gives the same bytes: times are those of the last commit that touched the distribution.

    Raises:
        RefusedError: A build failed, or made other files than :func:`release_files` names.
    """
    shutil.rmtree(folder, ignore_errors=True)
    place = member.folder.relative_to(root).as_posix()
    # What a developer sets for builds of their own must not reach a release; objects are known by their hash.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIO_") or key == _OBJECTS}
    environment |= {"SOURCE_DATE_EPOCH": git(root, "log", "-1", "--format=%ct", "--", place).strip()}
    pinned = ["--build-constraints", str(BACKENDS), "--require-hashes"] if (root / BACKENDS).is_file() else []
    command = ["uv", "--quiet", "build", "--no-create-gitignore", *pinned, "--out-dir", str(folder)]
    _run(root, [*command, "--sdist", str(member.folder)], environment)
    source = folder / release_files(member)[-1]
    variable = str(table(member.document, "tool", "pio-workspace", "platform-wheels").get("variable", ""))
    for target in platforms(member) or [""]:
        chosen = {**environment, variable: target} if target else environment
        _run(root, [*command, "--wheel", str(source)], chosen)
    made, wanted = sorted(path.name for path in folder.iterdir()), release_files(member)
    if made != sorted(wanted):
        raise RefusedError(f"{member.name}: the build made {', '.join(made)}, and a release has {', '.join(wanted)}")
    return [folder / name for name in wanted]


def check_files(member: Member, files: list[Path]) -> list[str]:
    """Problems of what was built, one line each: contents, metadata, and the libraries of platform wheels."""
    problems: list[str] = []
    for path in files:
        if path.name.endswith(".whl"):
            problems += [*check_wheel(path, member), *_check_metadata(path.name, _wheel_metadata(path, member), member)]
            if platforms(member):
                problems += [f"{path.name}: {problem}" for problem in check_library_wheel(path)]
        else:
            problems += _check_source(path, member)
    return problems


def _check_metadata(file: str, metadata: Message, member: Member) -> Iterator[str]:
    """Differences of the metadata from the ``pyproject.toml`` of the tree."""
    project = table(member.document, "project")
    told = {
        "Name": member.name,
        "Version": member.version,
        "Requires-Python": str(project.get("requires-python", "")),
        "License-Expression": str(project.get("license", "")),
    }
    for key, wanted in told.items():
        if str(metadata.get(key)) != wanted:
            yield f"{file}: {key} is {metadata.get(key)}, and the tree says {wanted}"
    declared = {_plain(requirement) for requirement in member.dependencies}
    for extra, requirements in member.extras.items():
        declared |= {f"{_plain(requirement)} [{canonicalize_name(extra)}]" for requirement in requirements}
    written = {_from_metadata(str(line)) for line in metadata.get_all("Requires-Dist", [])}
    for text in sorted(declared - written):
        yield f"{file}: does not require {text}, and the tree does"
    for text in sorted(written - declared):
        yield f"{file}: requires {text}, and the tree does not"


def _check_source(path: Path, member: Member) -> Iterator[str]:
    """A source distribution is one folder of plain files, and builds alone."""
    top = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as archive:
        entries = archive.getmembers()
        information = archive.extractfile(f"{top}/PKG-INFO") if f"{top}/PKG-INFO" in archive.getnames() else None
        text = information.read().decode("utf-8") if information else ""
    for entry in entries:
        if not (entry.isfile() or entry.isdir()) or PurePosixPath(entry.name).parts[0] != top or ".." in entry.name:
            yield f"{path.name}: {entry.name} is not a plain file below {top}/"
    names = {entry.name for entry in entries}
    for name in _IN_SOURCE:
        if f"{top}/{name}" not in names:
            yield f"{path.name}: lacks {name}"
    yield from _check_metadata(path.name, HeaderParser().parsestr(text), member)


def _wheel_metadata(wheel: Path, member: Member) -> Message:
    stem = f"{canonicalize_name(member.name).replace('-', '_')}-{member.version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        if f"{stem}/METADATA" not in archive.namelist():
            return HeaderParser().parsestr("")
        return HeaderParser().parsestr(archive.read(f"{stem}/METADATA").decode("utf-8"))


def _plain(requirement: Requirement) -> str:
    """The requirement in one spelling."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    return f"{canonicalize_name(requirement.name)}{extras}{requirement.specifier}{marker}"


def _from_metadata(line: str) -> str:
    """A ``Requires-Dist`` in the spelling of :func:`_plain`, its extra in brackets at the end."""
    match = re.search(r"""(?:\band\s+|;\s*)extra\s*==\s*['"]([^'"]+)['"]\s*$""", line)
    if not match:
        return _plain(Requirement(line))
    rest = line[: match.start()].strip()
    if ";" in rest:
        head, _, marker = rest.partition(";")
        rest = f"{head};{marker.strip().removeprefix('(').removesuffix(')')}"
    return f"{_plain(Requirement(rest))} [{canonicalize_name(match[1])}]"


def _run(root: Path, command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"{' '.join(command[:3])} {command[-1]}: exit code {done.returncode}: {done.stderr.strip()}")
