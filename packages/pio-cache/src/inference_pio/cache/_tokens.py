"""What a group of layers that keeps tokens, all or the last ones, does with its pages."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.cache._moves import MoveQueue
    from inference_pio.cache._pool import PagePool
    from inference_pio.cache._sequence import SequencePages

# Pages that a sequence asks for at a time once it is longer than was expected.
AHEAD = 8


def first_visible(position: int, window: int) -> int:
    """First position that a query at ``position`` can see through ``window``."""
    return max(0, position - window + 1)


class TokenGroup:
    """Pages of the tokens of each sequence: of all, or of those that the next query can see.

    Args:
        number: Index of the group.
        pool: Its pages.
        moves: Where copies are queued.
        page_size: Tokens per page.
        window: Tokens that a query can see; None for all.
    """

    def __init__(
        self, number: int, pool: PagePool, moves: MoveQueue, *, page_size: int, window: int | None = None
    ) -> None:
        self.number = number
        self.pool = pool
        self._moves = moves
        self._page_size = page_size
        self._window = window
        # A window that starts in the middle of a page lies on one page more.
        self.most = None if window is None else 1 - (1 - window) // page_size

    @property
    def capacity(self) -> int:
        """Length of the longest sequence that fits alone, computed token by token; ``sys.maxsize`` if any does."""
        if self.most is not None and self.most <= self.pool.num_pages:
            return sys.maxsize
        return self.pool.num_pages * self._page_size

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The table of a sequence that begins with published pages: -1 where the next query cannot see."""
        start = self._first(len(digests) * self._page_size)
        return [-1] * start + [self.pool.index[digest] for digest in digests[start:]]

    def need(self, found: list[int], num_tokens: int) -> int:
        """Free pages that :meth:`place` takes."""
        refs = self.pool.refs
        idle = sum(page >= 0 and not refs[page] for page in found)
        return idle + (max(0, self._pages(num_tokens) - len(found)) if self._window is None else 0)

    def place(self, seq: SequencePages, found: list[int], num_tokens: int) -> None:
        """Fill the empty table of a sequence: with shared pages, and if all tokens are kept with pages for new ones."""
        self.pool.share(page for page in found if page >= 0)
        seq.tables[self.number].extend(found)
        seq.first[self.number] = self._first(len(found) * self._page_size)
        if self._window is None:
            self.extend(seq, self._pages(num_tokens))

    def short(self, seq: SequencePages, end: int) -> int:
        """Free pages that :meth:`extend` takes."""
        return max(0, end - len(seq.tables[self.number])) + self._is_shared(seq)

    def extend(self, seq: SequencePages, end: int) -> None:
        """Append pages until there are ``end``; replace a page that will be written and has other owners by a copy."""
        table = seq.tables[self.number]
        shared = self._is_shared(seq)
        count = max(0, end - len(table)) + shared
        if not count:
            return
        fresh = self.pool.take(count, self.wish(seq), seq.spares[self.number], table[-1] if table else -1)
        if shared:
            at = seq.num_computed // self._page_size
            self._moves.copy(self.number, table[at], fresh[0])
            self.pool.drop(table[at])
            table[at] = fresh.pop(0)
        table.extend(fresh)

    def wish(self, seq: SequencePages) -> int:
        """Pages that would best lie side by side from the end of the table on."""
        length = len(seq.tables[self.number])
        wish = seq.expected - length if length < seq.expected else AHEAD
        return wish if self.most is None else min(wish, 2 * self.most)

    def covered(self, seq: SequencePages) -> int:
        """Positions for which there is a page."""
        return len(seq.tables[self.number]) * self._page_size

    def publish(self, seq: SequencePages, digests: Sequence[bytes], end: int) -> None:
        """Let others find the pages up to ``end`` that have not been offered yet."""
        table = seq.tables[self.number]
        for page in range(max(seq.published, seq.first[self.number]), end):
            self.pool.publish(table[page], digests[page])

    def slide(self, seq: SequencePages, num_computed: int) -> None:
        """Give back the pages that a query at ``num_computed`` cannot see."""
        table = seq.tables[self.number]
        visible = self._first(num_computed)
        for page in range(seq.first[self.number], visible):
            self.pool.drop(table[page])
            table[page] = -1
        seq.first[self.number] = visible

    def next_slide(self, seq: SequencePages) -> int:
        """Number of computed tokens at which a page leaves the window."""
        return (
            sys.maxsize if self._window is None else (seq.first[self.number] + 1) * self._page_size + self._window - 1
        )

    def truncate(self, seq: SequencePages, end: int) -> None:
        """Give back the pages from ``end`` on, which hold nothing yet."""
        table = seq.tables[self.number]
        while len(table) > end:
            self.pool.retract(table.pop(), seq.spares[self.number])

    def used(self, seq: SequencePages) -> list[int]:
        """The part of the table that holds something."""
        return seq.tables[self.number][: self._pages(seq.num_computed)]

    def fork(self, seq: SequencePages, twin: SequencePages) -> None:
        """Share the pages that hold something with ``twin``."""
        twin.tables[self.number].extend(self.used(seq))
        self.pool.share(page for page in twin.tables[self.number] if page >= 0)

    def _is_shared(self, seq: SequencePages) -> bool:
        """Whether the next token goes into a page that others own, too: only forks do, and only the last page."""
        page, filled = divmod(seq.num_computed, self._page_size)
        return filled > 0 and self.pool.refs[seq.tables[self.number][page]] > 1

    def _first(self, num_computed: int) -> int:
        return 0 if self._window is None else first_visible(num_computed, self._window) // self._page_size

    def _pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)
