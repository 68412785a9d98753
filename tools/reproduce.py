# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Build distributions twice from one commit, in different surroundings, and compare the bytes.

The second build has another folder, other times of files, another umask, time zone, language and seed of hashes. What
both share is the commit and ``SOURCE_DATE_EPOCH``: the time of the last commit that touched the distribution's folder,
so that a version has the same bytes however many commits later it is built again. ``--against`` compares with files
from elsewhere, such as those of an index.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from archive_difference import differences
from release_build import BACKENDS, platforms
from workspace import ROOT, Member, read_members, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SHARED = ("pyproject.toml", ".gitignore")
"""What a build reads outside of the distribution's own folder: the date of its resolution, and what git ignores."""


class ReproduceError(Exception):
    """A build failed, or there is nothing to build; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where a build happens, as far as it must not matter.

    Attributes:
        folder: Path below a temporary folder.
        umask: Permissions that new files do not get.
        time: Seconds that every file of the tree was last changed at.
        variables: Variables of the environment.
    """

    folder: str
    umask: int
    time: int
    variables: Mapping[str, str]


FIRST = Surroundings(
    folder="a",
    umask=0o022,
    time=1_600_000_000,
    variables={"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
)
SECOND = Surroundings(
    folder="second build/much deeper",
    umask=0o077,
    time=1_700_000_001,
    variables={"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "4711"},
)


def main() -> None:
    """Build, compare, print one line an archive; exit with 1 and what differs if anything does."""
    parser = argparse.ArgumentParser(description="Build distributions twice and compare the bytes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="distributions (default: all)")
    parser.add_argument("--revision", default="HEAD", help="commit to build (default: %(default)s)")
    parser.add_argument(
        "--all-platforms", action="store_true", help="every wheel of a release, not this machine's alone"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the archives of the first build here")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with these archives, too, flat or by name")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    members = read_members(root)
    if unknown := sorted(set(arguments.names) - members.keys()):
        parser.error(f"no distribution is called {', '.join(unknown)}; there are {', '.join(members)}")
    if arguments.against is not None and not arguments.against.is_dir():
        parser.error(f"--against {arguments.against}: no such folder")
    results: dict[str, dict[str, object]] = {}
    try:
        commit = commit_id(root, arguments.revision)
        for name in arguments.names or members:
            with tempfile.TemporaryDirectory(prefix="pio-reproduce-") as scratch:
                built = build_twice(root, members[name], commit, arguments.all_platforms, Path(scratch))
                results |= compare(built, _places(arguments.against, name))
                if arguments.out is not None:
                    arguments.out.mkdir(parents=True, exist_ok=True)
                    for archive, _ in built:
                        (arguments.out / archive.name).write_bytes(archive.read_bytes())
    except ReproduceError as error:
        sys.exit(f"reproduce: {error}")
    print(json.dumps(results) if arguments.json else render(results))
    if any(result["differences"] for result in results.values()):
        sys.exit(1)


def commit_id(root: Path, revision: str) -> str:
    """The commit that ``revision`` means now: a branch may move between the builds.

    Raises:
        ReproduceError: No repository, or an unknown revision.
    """
    return _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()


def source_date(root: Path, folder: Path, revision: str) -> int:
    """Seconds of the last commit up to ``revision`` that touched ``folder``.

    Raises:
        ReproduceError: No repository, an unknown revision, or one without this folder.
    """
    place = folder.relative_to(root).as_posix()
    told = _git(root, "log", "-1", "--format=%ct", revision, "--", place).decode().strip()
    if not told:
        message = f"{place} is not in {revision}: commit it first"
        raise ReproduceError(message)
    return int(told)


def build_twice(
    root: Path, member: Member, revision: str, all_platforms: bool, scratch: Path
) -> list[tuple[Path, Path]]:
    """The archives of ``member`` from both builds: its source distribution, and the wheels from that.

    Raises:
        ReproduceError: A build that failed, or two with different names of files.
    """
    date = source_date(root, member.folder, revision)
    targets = list(platforms(member)) if all_platforms else []
    both = [build(root, member, revision, targets, date, scratch, around) for around in (FIRST, SECOND)]
    names = [[path.name for path in paths] for paths in both]
    if names[0] != names[1]:
        message = f"{member.name}: one build makes {', '.join(names[0])}, the other {', '.join(names[1])}"
        raise ReproduceError(message)
    return list(zip(*both, strict=True))


def build(
    root: Path,
    member: Member,
    revision: str,
    targets: Iterable[str],
    date: int,
    scratch: Path,
    around: Surroundings,
) -> list[Path]:
    """Export the commit into ``around`` and build there; returns the archives by name.

    Raises:
        ReproduceError: A build that failed.
    """
    tree, out = scratch / around.folder / "tree", scratch / around.folder / "dist"
    place = member.folder.relative_to(root)
    pinned = _git(root, "ls-tree", "--name-only", revision, "--", BACKENDS.as_posix()).decode().split()
    export(root, revision, [place.as_posix(), *SHARED, *pinned], tree, around)
    environment = {**os.environ, **around.variables, "SOURCE_DATE_EPOCH": str(date), "UV_NO_PROGRESS": "1"}
    variable = str(table(member.document, "tool", "pio-workspace", "platform-wheels").get("variable", ""))
    environment.pop(variable, None)
    held = ["--build-constraints", str(tree / BACKENDS), "--require-hashes"] if pinned else []
    command = ["uv", "--quiet", "build", *held, "--out-dir", str(out)]
    _run([*command, "--sdist", str(tree / place)], tree, environment, around, member)
    [source] = out.glob("*.tar.gz")
    for target in list(targets) or [""]:
        chosen = {**environment, variable: target} if target else environment
        _run([*command, "--wheel", str(source)], tree, chosen, around, member)
    return sorted(path for path in out.iterdir() if path.name.endswith((".whl", ".tar.gz")))


def export(root: Path, revision: str, paths: Iterable[str], tree: Path, around: Surroundings) -> None:
    """Write ``paths`` of the commit into ``tree``, with the permissions and times of ``around``.

    Raises:
        ReproduceError: As :func:`source_date`.
    """
    packed = _git(root, "archive", "--format=tar", revision, "--", *paths)
    tree.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tree, filter="data")
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~around.umask)
            os.utime(path, (around.time, around.time))


def compare(built: Iterable[tuple[Path, Path]], against: Path | None) -> dict[str, dict[str, object]]:
    """Per archive its SHA-256 and what differs, between the builds and from the file of that name in ``against``."""
    results: dict[str, dict[str, object]] = {}
    for first, second in built:
        found = differences(first, second)
        if against is not None:
            other = against / first.name
            found += (
                [f"against {other}: {line}" for line in differences(first, other)]
                if other.is_file()
                else [f"{other} is not there"]
            )
        digest = hashlib.sha256(first.read_bytes()).hexdigest()
        results[first.name] = {"sha256": digest, "bytes": first.stat().st_size, "differences": found}
    return results


def _places(against: Path | None, name: str) -> Path | None:
    """Where the archives of ``name`` to compare with lie: in a folder of that name, if there is one."""
    return against / name if against is not None and (against / name).is_dir() else against


def render(results: Mapping[str, Mapping[str, object]]) -> str:
    """The results for people: one line an archive, and what differs below it."""
    lines: list[str] = []
    for name, result in results.items():
        found = result["differences"]
        assert isinstance(found, list)
        lines.append(
            f"{name}: {'DIFFERS' if found else 'same bytes'}, {result['bytes']} bytes, sha256 {result['sha256']}"
        )
        lines += [f"    {line}" for line in found]
    return "\n".join(lines)


def _run(
    command: list[str], folder: Path, environment: Mapping[str, str], around: Surroundings, member: Member
) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, umask=around.umask, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        message = f"{member.name}: {' '.join(command)}: exit code {done.returncode}\n{done.stderr.strip()}"
        raise ReproduceError(message)


def _git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    if done.returncode != 0:
        message = f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}"
        raise ReproduceError(message)
    return done.stdout


if __name__ == "__main__":
    main()
