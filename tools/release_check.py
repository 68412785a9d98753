"""Build releases and hold them to everything that can be known before they are out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pending_releases import pending
from release_build import build, check_files
from release_environment import Workbench
from release_git import commit_of, refuse_changes
from release_index import Index
from release_manifest import Built, Manifest, describe, write_manifest
from release_names import canonical_names
from release_order import dependency_order
from release_refusal import RefusedError
from workspace import Member, closure, read_members, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RESOLUTIONS = ("highest", "lowest-direct")
_TWINE = "twine>=7"


def names_to_check(members: Mapping[str, Member], names: Iterable[str], index: str | None) -> list[str]:
    """In dependency order: the ``names``, or what is prepared and not on the ``index``, or everything.

    Raises:
        RefusedError: A name that is unknown, a dependency cycle, an index that does not answer.
    """
    wanted, order = canonical_names(members, names), dependency_order(members)
    if wanted:
        return [name for name in order if name in wanted]
    if index is None:
        return order
    return pending(members, Index(index))


def check(
    root: Path, names: list[str], out: Path, index: str | None, resolutions: Iterable[str]
) -> tuple[Manifest, str]:
    """Build ``names`` into ``out``, check them, and write the manifest, which lists what passed.

    Per distribution: the source distribution; every wheel from it; what is inside them; their metadata against the
    tree; twine; all modules imported in an environment of its declared dependencies; its tests in one environment for
    each of ``resolutions``. Siblings come from these wheels or from ``index``; without an index, wheels of the tree
    stand in for those that are not named.

    Returns:
        The manifest and its SHA-256.

    Raises:
        RefusedError: The distributions are not committed, or something above does not hold.
    """
    members = read_members(root)
    refuse_changes(root, [members[name].folder for name in names])
    commit = commit_of(root, "HEAD")
    assert commit is not None, "a tree without changes has a commit"
    shutil.rmtree(out, ignore_errors=True)
    built = {name: _build(root, members[name], out) for name in names}
    _call_twine(root, [path for paths in built.values() for path in paths])
    with tempfile.TemporaryDirectory(prefix="pio-release-") as folder:
        bench = Workbench(
            root=root, members=members, wheels=Path(folder, "wheels"), index=index, scratch=Path(folder, "environments")
        )
        bench.scratch.mkdir()
        bench.wheels.mkdir()
        for path in (path for paths in built.values() for path in paths if path.name.endswith(".whl")):
            shutil.copy2(path, bench.wheels)
        if index is None:
            _build_siblings(root, members, names, bench.wheels, Path(folder, "siblings"))
        for name in names:
            _say(f"{name} {members[name].version}: importing")
            bench.try_bare(members[name])
            for resolution in resolutions:
                _say(f"{name} {members[name].version}: testing at {resolution} versions")
                bench.run_tests(members[name], resolution)
    manifest = Manifest(
        commit=commit,
        distributions=tuple(
            Built(
                name=name,
                version=members[name].version,
                tested=tuple(resolutions),
                files=tuple(describe(path) for path in built[name]),
            )
            for name in names
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    return manifest, write_manifest(out, manifest)


def _build(root: Path, member: Member, out: Path) -> list[Path]:
    _say(f"{member.name} {member.version}: building")
    files = build(root, member, out / member.name)
    if problems := check_files(member, files):
        raise RefusedError(*problems)
    return files


def _build_siblings(
    root: Path, members: Mapping[str, Member], names: Iterable[str], wheels: Path, scratch: Path
) -> None:
    """Wheels of what the environments of ``names`` need besides; they are checked when it is their turn."""
    needed = {below for name in names for below in closure(name, members, groups=True)} - set(names)
    for name in sorted(needed):
        command = ["uv", "--quiet", "build", "--wheel", str(members[name].folder), "--out-dir", str(scratch / name)]
        _run(root, command)
        [wheel] = (scratch / name).glob("*.whl")
        shutil.copy2(wheel, wheels)


def _call_twine(root: Path, files: list[Path]) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    newest = table(document, "tool", "uv").get("exclude-newer")
    pinned = ["--exclude-newer", str(newest)] if newest else []
    _run(root, ["uv", "tool", "run", *pinned, "--from", _TWINE, "twine", "check", "--strict", *map(str, files)])


def _run(root: Path, command: list[str]) -> None:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"{' '.join(command[:3])}: {(done.stdout + done.stderr).strip()}")


def _say(text: str) -> None:
    print(f"check: {text}", file=sys.stderr, flush=True)
