"""Where the sequences of a batch lie in the pages of a group of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from inference_pio.interfaces import RaggedBatch

T = TypeVar("T")


class PageLayout:
    """The block tables of a batch on the host. Keeps those of the last batch, since every layer asks.

    Args:
        num_pages: Pages of the group.
        page_size: ``P``, in tokens.
        windowed: Whether leading pages may be -1: given back, because the window has left them behind.
    """

    def __init__(self, num_pages: int, page_size: int, *, windowed: bool = False) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.windowed = windowed
        self._batch: RaggedBatch | None = None
        self._tables: list[list[int]] = []
        self._first_slots: dict[tuple[int, int], int | None] = {}
        self._remembered: dict[Hashable, Any] = {}

    def tables(self, batch: RaggedBatch) -> list[list[int]]:
        """Per sequence its pages in order, as many as its tokens need.

        Raises:
            ValueError: A block table is too short or names a page outside the group.
        """
        if self._batch is not batch:
            # Identity is safe as a key because the batch is kept alive beside its answer.
            rows: list[list[int]] = batch.block_tables.tolist()  # on CUDA the one wait per step
            pairs = enumerate(zip(rows, batch.seq_lens, strict=True))
            self._tables = [self._table(index, row, length) for index, (row, length) in pairs]
            self._first_slots = {}
            self._remembered = {}
            self._batch = batch
        return self._tables

    def pages(self, batch: RaggedBatch, index: int, start: int) -> list[int]:
        """The pages of sequence ``index`` from the one that holds position ``start``.

        Raises:
            ValueError: As :meth:`tables`; or one of these pages was given back.
        """
        pages = self.tables(batch)[index][start // self.page_size :]
        if pages and min(pages) < 0:
            raise ValueError(f"sequence {index}: page -1 is outside the cache: given back before position {start}")
        return pages

    def first_slot(self, batch: RaggedBatch, index: int, start: int) -> int | None:
        """The slot that position 0 of sequence ``index`` has or would have, if its pages from ``start`` are neighbours.

        None where they are scattered.

        Raises:
            ValueError: As :meth:`pages`.
        """
        self.tables(batch)
        key = (index, start // self.page_size)
        if key not in self._first_slots:
            pages = self.pages(batch, index, start)
            neighbours = pages == list(range(pages[0], pages[0] + len(pages))) if pages else True
            first = pages[0] if pages else key[1]
            self._first_slots[key] = (first - key[1]) * self.page_size if neighbours else None
        return self._first_slots[key]

    def remember(self, batch: RaggedBatch, key: Hashable, make: Callable[[list[list[int]]], T]) -> T:
        """What ``make`` made of :meth:`tables` when this was first asked for with ``batch`` and ``key``."""
        tables = self.tables(batch)
        if key not in self._remembered:
            self._remembered[key] = make(tables)
        found: T = self._remembered[key]
        return found

    def _table(self, index: int, row: list[int], length: int) -> list[int]:
        count = -(-length // self.page_size)
        pages = row[:count]
        if len(pages) < count:
            raise ValueError(f"sequence {index}: {len(pages)} pages of {self.page_size} do not hold {length} tokens")
        if pages and (max(pages) >= self.num_pages or min(pages) < (-1 if self.windowed else 0)):
            bad = max(pages) if max(pages) >= self.num_pages else min(pages)
            raise ValueError(f"sequence {index}: page {bad} is outside the cache's {self.num_pages} pages")
        return pages
