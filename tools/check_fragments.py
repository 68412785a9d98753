# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Refuse a change of what a distribution ships without a fragment, and a changelog edited outside of a release.

What ships is ``src/``, and ``native/`` where there is one. A range may hold whole releases, which take the fragments
away: there only what came after the last of them needs a new fragment. In a release the changelog gains entries at its
mark, the newest of them for the version that is declared; any other change of it is an edit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from problem import Problem
from release_git import commit_of, git, text_at, version_at
from release_refusal import RefusedError
from rules_layout import FRAGMENT
from workspace import ROOT, Member, read_members

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHIPPED = ("src", "native")
_MARK = "<!-- releases, newest first -->\n"


def main() -> None:
    """Check a range of commits; one line per problem, exit code 1 if there is one."""
    parser = argparse.ArgumentParser(description="Refuse changes without a fragment, and edited changelogs.")
    parser.add_argument("--base", default="origin/main", help="revision to compare with (default: %(default)s)")
    parser.add_argument("--head", default="HEAD", help="revision that is compared (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if not arguments.base.strip("0"):
        print("fragments: no base to compare with: nothing to check")
        return
    try:
        problems = check_range(root, arguments.base, arguments.head)
    except RefusedError as error:
        sys.exit(f"fragments: {error}")
    for problem in problems:
        print(problem.render(root))
    if problems:
        sys.exit(1)
    print("fragments: every change that ships has one, and no changelog is edited")


def check_range(root: Path, base: str, head: str) -> list[Problem]:
    """All problems of what ``head`` changes since it left ``base``, sorted by path.

    Raises:
        RefusedError: An unknown revision, or two without a common past.
    """
    for revision in (base, head):
        if commit_of(root, revision) is None:
            raise RefusedError(f"git knows no revision {revision}: fetch it, or name another with --base")
    start = git(root, "merge-base", base, head).strip()
    members = read_members(root).values()
    return sorted(problem for member in members for problem in _check_member(root, member, start, head))


def _check_member(root: Path, member: Member, start: str, head: str) -> Iterator[Problem]:
    changelog = member.folder / "CHANGELOG.md"
    before, after = text_at(root, start, changelog), text_at(root, head, changelog)
    if before is not None and before != after:
        if not _is_release(before, after or "", version_at(root, head, member.folder)):
            way_out = "restore it, and say what changes in a fragment: `tools/release.py prepare` writes the changelog"
            yield Problem(changelog, "is edited outside of a release", way_out)
            return
        start = git(root, "log", "-1", "--format=%H", f"{start}..{head}", "--", _inside(root, changelog)).strip()
    shipped = [path for name in _SHIPPED for path in _changed(root, start, head, member.folder / name)]
    fragments = _changed(root, start, head, member.folder / "changelog.d", kept=True)
    if shipped and not any(FRAGMENT.fullmatch(Path(path).name) for path in fragments):
        more = f" and {len(shipped) - 1} more" if len(shipped) > 1 else ""
        way_out = f"add {_inside(root, member.folder)}/changelog.d/<id>.<type>.md, one line for users"
        yield Problem(root / shipped[0], f"changed{more} without a fragment", way_out)


def _changed(root: Path, start: str, head: str, folder: Path, *, kept: bool = False) -> list[str]:
    """Paths below ``folder`` that differ; with ``kept``, only those that ``head`` has."""
    options = ["--name-only", "--no-renames", "-z", *(["--diff-filter=d"] if kept else [])]
    listed = git(root, "diff", *options, start, head, "--", _inside(root, folder))
    return [path for path in listed.split("\0") if path]


def _is_release(before: str, after: str, version: str | None) -> bool:
    """Whether ``after`` is ``before`` with entries put in at the mark, the first of them for ``version``."""
    opening, mark, entries = before.partition(_MARK)
    if not mark or not after.startswith(opening + mark) or not after.endswith(entries):
        return False
    added = after[len(opening + mark) : len(after) - len(entries)]
    return added.strip().startswith(f"## {version} ")


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


if __name__ == "__main__":
    main()
