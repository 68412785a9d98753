"""What the next releases are: read from the fragments, the versions and the bounds of the tree, and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from release_bounds import Bound, excluded
from release_fragments import bump_of, bumped, read_fragments
from release_order import dependency_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workspace import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One distribution to release.

    Attributes:
        name: Canonical name.
        version: The version that the tree declares.
        bump: ``first``, ``major``, ``minor`` or ``patch``.
        next: The version to release.
        why: Fragments by kind, or the releases that its bounds exclude.
        excluded_by: Bounds of the tree that exclude ``next``; ``prepare`` raises them.
    """

    name: str
    version: str
    bump: str
    next: str
    why: str
    excluded_by: tuple[Bound, ...]

    @property
    def dependents(self) -> list[str]:
        """Names of the distributions whose published bounds exclude the new version."""
        return sorted({bound.dependent for bound in self.excluded_by if bound.published} - {self.name})


def make_plan(members: Mapping[str, Member]) -> list[Step]:
    """All steps, in dependency order; empty if nothing waits.

    A distribution without a fragment takes part if a release of another excludes it: its metadata changes, so its patch
    is raised. That excludes nobody in turn, since every bound holds a whole minor.

    Raises:
        RefusedError: A dependency cycle.
    """
    order = dependency_order(members)
    kinds = {name: Counter(fragment.kind for fragment in read_fragments(members[name])) for name in order}
    bumps = {name: bump_of(members[name], kinds[name]) for name in order}
    waiting = {name for name in order if kinds[name] or bumps[name] == "first"}
    bounds = excluded(members, {name: bumped(members[name].version, bumps[name]) for name in waiting})
    waiting |= {bound.dependent for bound in bounds if bound.published}
    steps: list[Step] = []
    for name in order:
        if name not in waiting:
            continue
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds[name].items()))
        reached = sorted({bound.target for bound in bounds if bound.dependent == name and bound.published} - {name})
        steps.append(
            Step(
                name=name,
                version=members[name].version,
                bump=bumps[name],
                next=bumped(members[name].version, bumps[name]),
                why="; ".join([*([counted] if counted else []), *(f"needs the new {target}" for target in reached)]),
                excluded_by=tuple(bound for bound in bounds if bound.target == name),
            )
        )
    return steps
