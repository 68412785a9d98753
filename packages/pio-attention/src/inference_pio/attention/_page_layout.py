"""Where the sequences of a batch lie in the pages of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.interfaces import RaggedBatch


class PageLayout:
    """Finds sequences whose pages lie side by side. Keeps the answer of the last batch, since every layer asks.

    Args:
        num_pages: Pages of the cache.
        page_size: ``P``, in tokens.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._last: tuple[RaggedBatch, tuple[int | None, ...]] | None = None

    def first_slots(self, batch: RaggedBatch) -> tuple[int | None, ...]:
        """Per sequence the slot of its first token if its pages are consecutive, None if they are scattered.

        Raises:
            ValueError: A block table is too short or names a page outside the cache.
        """
        last = self._last
        if last is None or last[0] is not batch:
            # Identity is safe as a key because the batch is kept alive beside its answer.
            last = (batch, self._find(batch))
            self._last = last
        return last[1]

    def _find(self, batch: RaggedBatch) -> tuple[int | None, ...]:
        tables: list[list[int]] = batch.block_tables.tolist()  # on CUDA the one wait per step
        return tuple(
            self._first_slot(index, table, length)
            for index, (table, length) in enumerate(zip(tables, batch.seq_lens, strict=True))
        )

    def _first_slot(self, index: int, table: list[int], length: int) -> int | None:
        count = -(-length // self.page_size)
        pages = table[:count]
        if len(pages) < count:
            raise ValueError(f"sequence {index}: {len(pages)} pages of {self.page_size} do not hold {length} tokens")
        if not pages:
            return 0
        if min(pages) < 0 or max(pages) >= self.num_pages:
            bad = min(pages) if min(pages) < 0 else max(pages)
            raise ValueError(f"sequence {index}: page {bad} is outside the cache's {self.num_pages} pages")
        first = pages[0]
        return first * self.page_size if pages == list(range(first, first + count)) else None
