# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Check the rules of the workspace that no other tool sees. One line per problem; exit code 1 if there is one."""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import rules_dependencies as dependencies
import rules_extras as extras
import rules_layout as layout
from problem import Problem, Workspace
from workspace import ROOT, Member, read_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WORKSPACE_RULES: tuple[Callable[[Workspace], Iterator[Problem]], ...] = (
    layout.check_sources,
    layout.check_leaves_apart,
)
_MEMBER_RULES: tuple[Callable[[Member, Workspace], Iterator[Problem]], ...] = (
    layout.check_namespace,
    layout.check_metadata,
    layout.check_files,
    layout.check_fragments,
    layout.check_manifest,
    dependencies.check_requirements,
    dependencies.check_source_imports,
    dependencies.check_test_imports,
    extras.check_extra_modules,
)


def main() -> None:
    """Check the workspace around this file, or the one at ``--root``."""
    parser = argparse.ArgumentParser(description="Check the rules of the workspace that no other tool sees.")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    root = parser.parse_args().root.resolve()
    problems = check(root)
    for problem in problems:
        print(problem.render(root))
    if problems:
        sys.exit(1)
    print(f"workspace: {len(read_members(root))} distributions, no problems")


def check(root: Path) -> list[Problem]:
    """All problems of the workspace at ``root``, sorted by path."""
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    workspace = Workspace(root=root, members=read_members(root), document=document)
    found = [problem for rule in _WORKSPACE_RULES for problem in rule(workspace)]
    for member in workspace.members.values():
        found += [problem for rule in _MEMBER_RULES for problem in rule(member, workspace)]
    return sorted(set(found))


if __name__ == "__main__":
    main()
