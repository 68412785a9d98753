"""What a rule of the workspace looks at, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from workspace import Member


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One broken rule.

    Attributes:
        path: File or folder at fault.
        what: What is wrong, with the value.
        way_out: What to do about it.
        line: Line number, or 0 if the whole file is meant.
    """

    path: Path
    what: str
    way_out: str
    line: int = 0

    def render(self, root: Path) -> str:
        """One line, with the path relative to ``root``."""
        place = self.path.relative_to(root).as_posix() + (f":{self.line}" if self.line else "")
        return f"{place}: {self.what}: {self.way_out}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What every rule looks at."""

    root: Path
    members: Mapping[str, Member]
    document: Mapping[str, object]
