"""Free pages, kept as runs of neighbours."""

from __future__ import annotations


class FreeRuns:
    """Disjoint runs of free pages; neighbouring runs become one. Each operation takes constant time.

    Runs lie in buckets by the bit length of their size (segregated fits; Masmano et al. 2004, "TLSF: a new dynamic
    memory allocator for real-time systems"). A run of at least ``n`` pages is found without a search: any run of the
    first filled bucket in which all are long enough.

    Attributes:
        total: Pages in all runs.
    """

    __slots__ = ("_buckets", "_filled", "_lengths", "_starts", "total")

    def __init__(self, num_pages: int) -> None:
        self.total = 0
        self._lengths: dict[int, int] = {}  # start of a run -> its length
        self._starts: dict[int, int] = {}  # page after a run -> its start
        self._buckets: list[dict[int, None]] = [{} for _ in range(num_pages.bit_length() + 1)]
        self._filled = 0  # bit b is set if bucket b holds a run
        self.add(0, num_pages)

    def add(self, start: int, length: int) -> None:
        """Add the pages from ``start`` on, none of which is free yet."""
        self.total += length
        stop = start + length
        if start in self._starts:
            start = self._starts[start]
            length += self._remove(start)
        if stop in self._lengths:
            length += self._remove(stop)
        self._insert(start, length)

    def take(self, wish: int) -> tuple[int, int]:
        """Take neighbours: ``wish`` pages if a run of so many is at hand, else a run that is among the longest.

        Returns:
            First page, and how many, at most ``wish``. There must be a free page.
        """
        fitting = (wish - 1).bit_length() + 1  # the first bucket in which every run is long enough
        above = self._filled >> fitting
        bucket = fitting + (above & -above).bit_length() - 1 if above else self._filled.bit_length() - 1
        start, _ = self._buckets[bucket].popitem()
        self._buckets[bucket][start] = None
        return start, self._cut(start, wish)

    def take_at(self, start: int, wish: int) -> int:
        """Take up to ``wish`` pages from the run that starts at ``start``; returns how many, 0 if there is none."""
        return self._cut(start, wish) if start in self._lengths else 0

    def fits(self, count: int) -> bool:
        """Whether a run of ``count`` pages is at hand."""
        return bool(self._filled >> (count - 1).bit_length() + 1)

    def runs(self) -> dict[int, int]:
        """Start and length of each run, a copy."""
        return dict(self._lengths)

    def check(self) -> None:
        """Verify that the three views of the runs agree and that no two runs touch.

        Raises:
            AssertionError: They do not.
        """
        assert sum(self._lengths.values()) == self.total, "free pages are miscounted"
        assert self._starts == {start + length: start for start, length in self._lengths.items()}, "run ends differ"
        assert not self._starts.keys() & self._lengths.keys(), "neighbouring runs were not joined"
        binned = {start: bucket for bucket, starts in enumerate(self._buckets) for start in starts}
        assert binned == {start: length.bit_length() for start, length in self._lengths.items()}, (
            "runs in wrong buckets"
        )
        filled = sum(1 << bucket for bucket, starts in enumerate(self._buckets) if starts)
        assert filled == self._filled, "filled buckets are misjudged"

    def _cut(self, start: int, wish: int) -> int:
        length = self._remove(start)
        if length > wish:
            self._insert(start + wish, length - wish)
            length = wish
        self.total -= length
        return length

    def _insert(self, start: int, length: int) -> None:
        bucket = length.bit_length()
        self._lengths[start] = length
        self._starts[start + length] = start
        self._buckets[bucket][start] = None
        self._filled |= 1 << bucket

    def _remove(self, start: int) -> int:
        length = self._lengths.pop(start)
        del self._starts[start + length]
        bucket = length.bit_length()
        del self._buckets[bucket][start]
        if not self._buckets[bucket]:
            self._filled ^= 1 << bucket
        return length
