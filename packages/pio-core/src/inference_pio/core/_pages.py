"""Which page of the cache belongs to whom. Bookkeeping only: integers, no torch, no storage."""

from __future__ import annotations


class PagePool:
    """Hands out pages of a cache and takes them back.

    Pages are handed out as one run of neighbours where such a run is free, because an attention backend can read a
    run in place and must gather anything else.

    Args:
        num_pages: Pages in the cache.
        page_size: Tokens per page.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            msg = f"a pool needs pages and a page size of at least 1, got {num_pages} and {page_size}"
            raise ValueError(msg)
        self.num_pages = num_pages
        self.page_size = page_size
        self._free: list[tuple[int, int]] = [(0, num_pages)]  # runs [start, end), sorted, never touching

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return sum(end - start for start, end in self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold ``tokens`` tokens."""
        return -(-tokens // self.page_size)

    def allocate(self, tokens: int) -> list[int] | None:
        """Pages for ``tokens`` tokens, in order, or None if not enough are free (then nothing changes)."""
        wanted = self.pages_for(tokens)
        if wanted > self.num_free:
            return None
        for index, (start, end) in enumerate(self._free):
            if end - start >= wanted:
                self._take(index, wanted)
                return list(range(start, start + wanted))
        pages: list[int] = []
        while len(pages) < wanted:  # no run is long enough: piece it together from the longest ones
            index = max(range(len(self._free)), key=lambda i: self._free[i][1] - self._free[i][0])
            start, end = self._free[index]
            count = min(end - start, wanted - len(pages))
            self._take(index, count)
            pages.extend(range(start, start + count))
        return pages

    def free(self, pages: list[int]) -> None:
        """Take back ``pages``.

        Raises:
            ValueError: A page that is not in the pool or is free already; nothing changes.
        """
        runs = sorted(self._free + [(page, page + 1) for page in pages])
        merged: list[tuple[int, int]] = []
        for start, end in runs:
            if start < 0 or end > self.num_pages or (merged and start < merged[-1][1]):
                msg = f"page {start} is freed twice or is not one of the {self.num_pages} pages"
                raise ValueError(msg)
            if merged and start == merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged

    def _take(self, index: int, count: int) -> None:
        start, end = self._free[index]
        if start + count == end:
            del self._free[index]
        else:
            self._free[index] = (start + count, end)
