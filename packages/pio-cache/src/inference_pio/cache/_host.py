"""Pages in host memory, to which sequences are moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inference_pio.cache._sequence import SequencePages
    from inference_pio.interfaces import CacheGroup


class HostTier:
    """Free pages of host memory, by group. Each used one belongs to one sequence.

    Args:
        groups: The groups.
    """

    def __init__(self, groups: Sequence[CacheGroup]) -> None:
        self._sizes = [group.num_host_pages for group in groups]
        self._free = [list(range(size - 1, -1, -1)) for size in self._sizes]

    def take(self, tables: Sequence[Sequence[int]]) -> tuple[list[int], ...] | None:
        """A place for each page of ``tables``, -1 where the table has none; None if there are too few."""
        counts = [sum(page >= 0 for page in table) for table in tables]
        if any(count > len(free) for count, free in zip(counts, self._free, strict=True)):
            return None
        return tuple(
            [free.pop() if page >= 0 else -1 for page in table] for table, free in zip(tables, self._free, strict=True)
        )

    def free(self, places: Sequence[Sequence[int]]) -> None:
        """Give back what :meth:`take` gave."""
        for free, table in zip(self._free, places, strict=True):
            free.extend(place for place in table if place >= 0)

    def check(self, live: Iterable[SequencePages]) -> None:
        """Verify that each page is either free or holds one page of one sequence.

        Raises:
            AssertionError: It is not so.
        """
        used: list[list[int]] = [list(free) for free in self._free]
        for seq in live:
            for pages, places in zip(used, seq.host, strict=bool(seq.host)):
                pages.extend(place for place in places if place >= 0)
        expected = [list(range(size)) for size in self._sizes]
        assert [sorted(pages) for pages in used] == expected, "a host page is used twice, or lost"
