# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Which distributions a change affects: those it touches, and everything whose environment holds one of them.

A path outside of every member (the root's configuration, a tool, a page) selects all of them. So does an all-zero base,
which is what a CI system gives for the commit before a branch's first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from workspace import MEMBER_FOLDERS, ROOT, Member, closure, read_members

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def main() -> None:
    """Print the affected distributions, one a line, or as a JSON list for a job matrix."""
    parser = argparse.ArgumentParser(description="Which distributions a change affects.")
    parser.add_argument("--base", default="origin/main", help="revision to compare with (default: %(default)s)")
    parser.add_argument("--head", default="HEAD", help="revision that is compared (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="name every distribution, whatever changed")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    members = read_members(root)
    if arguments.all or not arguments.base.strip("0"):
        names = sorted(member.name for member in members.values())
    else:
        try:
            names = affected(changed_paths(root, arguments.base, arguments.head), members, root)
        except subprocess.CalledProcessError as error:
            sys.exit(f"affected: git: {error.stderr.strip()}")
    print(json.dumps(names) if arguments.json else "\n".join(names))


def changed_paths(root: Path, base: str, head: str) -> list[PurePosixPath]:
    """Paths that differ between ``head`` and the point where it left ``base``, a renamed file under both its names.

    Raises:
        subprocess.CalledProcessError: Not a repository, or an unknown revision.
    """
    command = ["git", "diff", "--name-only", "--no-renames", "-z", f"{base}...{head}", "--"]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return [PurePosixPath(path) for path in done.stdout.split("\0") if path]


def affected(paths: Iterable[PurePosixPath], members: Mapping[str, Member], root: Path) -> list[str]:
    """Names of the distributions to test after a change of ``paths`` (relative to ``root``), sorted."""
    folders = {member.folder.relative_to(root).as_posix(): name for name, member in members.items()}
    touched: set[str] = set()
    for path in paths:
        owner = folders.get("/".join(path.parts[:2])) if path.parts[0] in MEMBER_FOLDERS else None
        if owner is None:
            return sorted(member.name for member in members.values())
        touched.add(owner)
    return sorted(member.name for name, member in members.items() if touched & closure(name, members, groups=True))


if __name__ == "__main__":
    main()
