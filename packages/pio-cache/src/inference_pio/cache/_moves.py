"""Moves of pages that the storage still has to carry out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.cache._stats import CacheStats

MoveKind = Literal["copy", "out", "in"]


class PageMove(NamedTuple):
    """Pages of one group to be copied, as if one after the other in this order.

    Attributes:
        kind: ``"copy"`` within the device, ``"out"`` from the device to host memory, ``"in"`` back.
        group: Index of the group.
        sources: Pages to read.
        targets: Pages to write, as many.
    """

    kind: MoveKind
    group: int
    sources: tuple[int, ...]
    targets: tuple[int, ...]


class MoveQueue:
    """Moves in the order in which they must be carried out; neighbours of one kind and group become one.

    A page may be freed and handed out again while moves from and to it are queued: every move reads what the moves
    before it have left, and no step writes before all of them are done.
    """

    def __init__(self, stats: CacheStats) -> None:
        self._stats = stats
        self._moves: list[tuple[MoveKind, int, list[int], list[int]]] = []
        self._targets: set[int] = set()

    def copy(self, group: int, source: int, target: int) -> None:
        """Queue a copy of one page within the device."""
        self._stats.copies += 1
        self._add("copy", group, source, target)

    def swap(self, kind: MoveKind, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Queue moves to or from the host; entries of -1 hold nothing."""
        for source, target in zip(sources, targets, strict=True):
            if source >= 0:
                self._add(kind, group, source, target)

    def drain(self) -> list[PageMove]:
        """All moves queued since the last call, in order."""
        moves = [PageMove(kind, group, tuple(sources), tuple(targets)) for kind, group, sources, targets in self._moves]
        self._moves.clear()
        return moves

    def _add(self, kind: MoveKind, group: int, source: int, target: int) -> None:
        last = self._moves[-1] if self._moves else None
        # Storage copies pages of the device in order, but promises no order to and from the host: each target once.
        if last is None or last[:2] != (kind, group) or (kind != "copy" and target in self._targets):
            self._moves.append((kind, group, [source], [target]))
            self._targets = {target}
        else:
            last[2].append(source)
            last[3].append(target)
            self._targets.add(target)
