"""What a group of recurrent layers does with its pages: one per sequence, and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.cache._moves import MoveQueue
    from inference_pio.cache._pool import PagePool
    from inference_pio.cache._sequence import SequencePages


class StateGroup:
    """States of sequences, which nobody shares, and copies of them at certain lengths, which nobody owns.

    Args:
        number: Index of the group.
        pool: Its pages.
        moves: Where copies are queued.
    """

    def __init__(self, number: int, pool: PagePool, moves: MoveQueue) -> None:
        self.number = number
        self.pool = pool
        self._moves = moves

    def place(self, seq: SequencePages, checkpoint: bytes | None) -> None:
        """Give the sequence a page, to be filled from the state published as ``checkpoint``."""
        source = None if checkpoint is None else self.pool.index[checkpoint]
        if source is not None:
            self.pool.touch(source)
        page = self._take(seq)
        # The only page left may have been the checkpoint's own: then the state is there already.
        if source is not None and source != page:
            self._moves.copy(self.number, source, page)

    def checkpoint(self, seq: SequencePages, digest: bytes) -> None:
        """Publish a copy of the state; where no page is to be had, do without."""
        if digest in self.pool.index:
            self.pool.touch(self.pool.index[digest])
        elif (page := self.pool.keep(digest)) is not None:
            self._moves.copy(self.number, seq.tables[self.number][0], page)

    def fork(self, seq: SequencePages, twin: SequencePages) -> None:
        """Give ``twin`` a copy of the state."""
        self._moves.copy(self.number, seq.tables[self.number][0], self._take(twin))

    def _take(self, seq: SequencePages) -> int:
        (page,) = self.pool.take(1, 1, seq.spares[self.number])
        seq.tables[self.number].append(page)
        return page
