"""What the release tools ask git: commits, tags ``NAME-vVERSION``, and files as they were."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from release_refusal import RefusedError
from workspace import table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def git(root: Path, *arguments: str) -> str:
    """What git prints.

    Raises:
        RefusedError: It failed; in its own words.
    """
    done = _run(root, *arguments)
    if done.returncode:
        raise RefusedError(f"git {arguments[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def tag_name(name: str, version: object) -> str:
    """The tag of one release."""
    return f"{name}-v{version}"


def released_versions(root: Path, name: str) -> list[Version]:
    """Versions of the distribution ``name`` that have a tag, ascending."""
    prefix = tag_name(name, "")
    found: list[Version] = []
    for tag in git(root, "tag", "--list", f"{prefix}*").split():
        try:
            found.append(Version(tag.removeprefix(prefix)))
        except InvalidVersion as error:
            way_out = f"delete it, or name it {prefix}VERSION"
            raise RefusedError(f"tag {tag} names no version: {way_out}") from error
    return sorted(found)


def commit_of(root: Path, revision: str) -> str | None:
    """The commit that ``revision`` names, or None if nothing has that name."""
    done = _run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return done.stdout.strip() or None


def content_of(root: Path, revision: str, path: Path) -> str | None:
    """The id of what the file or folder at ``path`` holds in ``revision``: equal content, equal id; None if absent."""
    done = _run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}:{_inside(root, path)}")
    return done.stdout.strip() or None


def text_at(root: Path, revision: str, path: Path) -> str | None:
    """The text of the file at ``path`` in ``revision``, or None if it is not there."""
    done = _run(root, "show", f"{revision}:{_inside(root, path)}")
    return None if done.returncode else done.stdout


def version_at(root: Path, revision: str, folder: Path) -> str | None:
    """The version that the distribution in ``folder`` declares in ``revision``, or None if it is not there."""
    text = text_at(root, revision, folder / "pyproject.toml")
    return None if text is None else str(table(tomllib.loads(text), "project").get("version", ""))


def python_files_at(root: Path, revision: str, folder: Path) -> dict[PurePosixPath, str]:
    """All Python files below ``folder`` in ``revision``: paths relative to ``folder``, and texts."""
    listed = git(root, "ls-tree", "-r", "-z", "--name-only", revision, "--", f"{_inside(root, folder)}/")
    names = [name for name in listed.split("\0") if name.endswith(".py")]
    inside = _inside(root, folder)
    return {PurePosixPath(name).relative_to(inside): git(root, "show", f"{revision}:{name}") for name in names}


def refuse_changes(root: Path, paths: Iterable[Path]) -> None:
    """A release is made of commits.

    Raises:
        RefusedError: Something below ``paths`` is changed, staged or new.
    """
    listed = git(root, "status", "--porcelain", "--untracked-files=all", "--", *(_inside(root, path) for path in paths))
    if changed := [line[3:] for line in listed.splitlines()]:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RefusedError(f"not committed: {', '.join(changed[:3])}{more}: commit or restore it first")


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
