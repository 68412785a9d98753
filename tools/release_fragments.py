"""Change fragments: what waits in ``changelog.d/`` for the next release of a distribution, and the bump it asks for.

The rule, which is Cargo's: while a distribution is at 0.x, what breaks somebody raises the minor, and everything else
the patch, so that a bound of one minor (``>=0.1,<0.2``) admits exactly the releases that break nobody. From 1.0 on
breaks raise the major, additions the minor, the rest the patch. ``changed`` and ``removed`` break; a change that can
break nobody is ``added`` or ``fixed``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import Version

from rules_layout import FRAGMENT, is_released

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from workspace import Member

BREAKING = frozenset({"changed", "removed"})


@dataclass(frozen=True, slots=True, order=True)
class Fragment:
    """One change.

    Attributes:
        path: Its file.
        kind: One of ``rules_layout.FRAGMENT_TYPES``.
    """

    path: Path
    kind: str


def read_fragments(member: Member) -> list[Fragment]:
    """The fragments of ``member``, by name; files that are not named like one are ``check_workspace``'s to find."""
    folder = member.folder / "changelog.d"
    matches = ((path, FRAGMENT.fullmatch(path.name)) for path in sorted(folder.glob("*.md")))
    return [Fragment(path, match[1]) for path, match in matches if match]


def bump_of(member: Member, kinds: Iterable[str]) -> str:
    """``major``, ``minor`` or ``patch``; ``first`` for a version that the changelog does not have yet."""
    if not is_released(member):
        return "first"
    kinds, stable = set(kinds), Version(member.version).major > 0
    if kinds & BREAKING:
        return "major" if stable else "minor"
    return "minor" if stable and "added" in kinds else "patch"


def bumped(version: str, bump: str) -> str:
    """``version`` after ``bump``, as ``uv version --bump`` counts; a first release keeps the one that it declares."""
    parsed = Version(version)
    match bump:
        case "first":
            return version
        case "major":
            return f"{parsed.major + 1}.0.0"
        case "minor":
            return f"{parsed.major}.{parsed.minor + 1}.0"
        case _:
            return f"{parsed.major}.{parsed.minor}.{parsed.micro + 1}"


def fragment_id(text: str) -> str:
    """``text`` as the name of a fragment, which has no dots."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
