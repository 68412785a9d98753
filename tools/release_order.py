"""The order in which distributions are released: each after everything of this workspace that it needs."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from release_refusal import RefusedError
from workspace import Member, siblings

if TYPE_CHECKING:
    from collections.abc import Mapping


def dependency_order(members: Mapping[str, Member]) -> list[str]:
    """Canonical names of all ``members``, lowest first; alphabetical where nothing else decides.

    Dependencies and extras count, dependency groups do not: they are never published.

    Raises:
        RefusedError: Some need each other in a circle, so that none of them could be the first on an index.
    """
    sorter = TopologicalSorter(
        {name: siblings(member, members, groups=False) - {name} for name, member in members.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise RefusedError(f"dependency cycle: {circle}: let one of them do without the other") from error
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return order
