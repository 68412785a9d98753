"""All groups of a model, asked at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from inference_pio.cache._pool import PagePool
from inference_pio.cache._states import StateGroup
from inference_pio.cache._tokens import TokenGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.cache._moves import MoveQueue
    from inference_pio.cache._sequence import SequencePages
    from inference_pio.cache._stats import CacheStats
    from inference_pio.interfaces import CacheGroup


class PageGroups:
    """The groups of layers: what is asked of one sequence is asked of each group.

    Attributes:
        pools: Pages of each group.
        tokens: The groups that keep tokens.
        windows: Those of them that keep the last tokens only.
        states: The groups that keep states.
        capacity: Length of the longest sequence that fits alone, computed token by token; ``sys.maxsize`` if any does.
    """

    def __init__(self, groups: Sequence[CacheGroup], moves: MoveQueue, stats: CacheStats, page_size: int) -> None:
        self.pools = tuple(PagePool(group.num_pages, stats) for group in groups)
        numbered = [(number, group, self.pools[number]) for number, group in enumerate(groups)]
        self.tokens = tuple(
            TokenGroup(number, pool, moves, page_size=page_size, window=group.window)
            for number, group, pool in numbered
            if group.kind != "state"
        )
        self.windows = tuple(group for group in self.tokens if group.most is not None)
        self.states = tuple(
            StateGroup(number, pool, moves) for number, group, pool in numbered if group.kind == "state"
        )
        self.capacity = min((group.capacity for group in self.tokens), default=sys.maxsize)

    def shortage(self, digests: list[bytes], num_tokens: int) -> int:
        """Pages that lack, in the worst group, to admit a sequence that begins with published pages."""
        shorts = [group.need(group.find(digests), num_tokens) - group.pool.num_free for group in self.tokens]
        shorts += [1 - group.pool.num_free for group in self.states]
        return max(0, *shorts)

    def place(self, seq: SequencePages, digests: list[bytes], num_tokens: int) -> None:
        """Fill the empty tables of a sequence that begins with published pages."""
        for group in self.tokens:
            group.place(seq, group.find(digests), num_tokens)
        for states in self.states:
            states.place(seq, digests[-1] if digests else None)

    def covered(self, seq: SequencePages) -> int:
        """Positions for which there is a page in every group."""
        covered = sys.maxsize
        for group in self.tokens:
            covered = min(covered, group.covered(seq))
        return covered

    def extend(self, seq: SequencePages, end: int) -> bool:
        """Append pages until there are ``end`` in each group that keeps tokens; False if any has too few."""
        for group in self.tokens:
            if group.short(seq, end) > group.pool.num_free:
                return False
        for group in self.tokens:
            group.extend(seq, end)
        return True

    def next_slide(self, seq: SequencePages) -> int:
        """Number of computed tokens at which a page leaves some window."""
        event = sys.maxsize
        for group in self.windows:
            event = min(event, group.next_slide(seq))
        return event

    def fork(self, seq: SequencePages, twin: SequencePages) -> bool:
        """Share the pages that hold something with ``twin``, copy states; False if there is no page for a state."""
        if not all(group.pool.num_free for group in self.states):
            return False
        for tokens in self.tokens:
            tokens.fork(seq, twin)
        for states in self.states:
            states.fork(seq, twin)
        return True

    def used(self, seq: SequencePages) -> list[list[int]]:
        """The parts of the tables that hold something."""
        tables = list(seq.tables)
        for group in self.tokens:
            tables[group.number] = group.used(seq)
        return tables

    def restore(self, seq: SequencePages, tables: Sequence[Sequence[int]]) -> bool:
        """Fill the empty tables of a sequence with new pages, one for each that ``tables`` has; False if too few."""
        counts = [sum(page >= 0 for page in table) for table in tables]
        if any(count > pool.num_free for count, pool in zip(counts, self.pools, strict=True)):
            return False
        wishes = [1] * len(counts)
        for group in self.tokens:
            wishes[group.number] = group.wish(seq)
        for number, pool in enumerate(self.pools):
            pages = iter(pool.take(counts[number], wishes[number], seq.spares[number]))
            seq.tables[number].extend(next(pages) if page >= 0 else -1 for page in tables[number])
        return True

    def vacate(self, seq: SequencePages) -> None:
        """Give up all pages, the deepest first: these are evicted before those that others may share."""
        for pool, table, spare in zip(self.pools, seq.tables, seq.spares, strict=True):
            for page in reversed(table):
                if page >= 0:
                    pool.drop(page)
            pool.return_spare(spare)
