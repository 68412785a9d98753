"""The pages of one group of layers: owned, free, set aside, or kept for their content."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from inference_pio.cache._runs import FreeRuns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inference_pio.cache._stats import CacheStats

# One page in so many may be clean or set aside, so that sequences lie in one piece, at the expense of cached prefixes.
AMPLE = 8
# Places tried, beyond what is needed, to make a long run.
TRIES = 4


class Spare:
    """Pages ``start .. stop - 1``, set aside for one sequence; free all the same, and stolen when pages run short."""

    __slots__ = ("start", "stop")

    def __init__(self) -> None:
        self.start = 0
        self.stop = 0


class PagePool:
    """Reference counts and contents of the pages of one group. No operation takes time in the size of the pool.

    A page is either owned (its count is positive), or free in one of three ways: in a run of clean pages, set aside
    (:class:`Spare`), or kept for its content (cached) until it is evicted, the least recently used first.

    Attributes:
        num_pages: Pages in the pool.
        num_owned: Pages that sequences own.
        refs: Sequences that own each page.
        digests: What each page holds, for those that are published.
        index: Page of each published content.
        cached: Published pages that nobody owns, least recently used first, and when they were given up.
        num_aside: Pages set aside.
    """

    def __init__(self, num_pages: int, stats: CacheStats) -> None:
        self.num_pages = num_pages
        self.num_owned = 0
        self.refs = [0] * num_pages
        self.digests: list[bytes | None] = [None] * num_pages
        self.index: dict[bytes, int] = {}
        self.cached: OrderedDict[int, int] = OrderedDict()
        self.num_aside = 0
        self.runs = FreeRuns(num_pages)
        self._spares: OrderedDict[Spare, None] = OrderedDict()
        self._ample = num_pages // AMPLE
        self._clock = 0
        self._stats = stats

    @property
    def num_free(self) -> int:
        """Pages that can be had: clean, set aside or cached."""
        return self.num_pages - self.num_owned

    def take(self, count: int, wish: int, spare: Spare, last: int = -1) -> list[int]:
        """Own ``count`` pages, side by side as far as possible; at most :attr:`num_free`.

        Args:
            count: How many.
            wish: How many neighbours would be welcome; what goes beyond ``count`` is set aside.
            spare: What is set aside for the sequence, used up first.
            last: Page that the new ones should follow, or -1.
        """
        if spare.stop - spare.start >= count:
            pages = list(range(spare.start, spare.start + count))
            spare.start += count
            self.num_aside -= count
        else:
            pages = self._gather(count, max(count, wish), spare, last)
        for page in pages:
            self.refs[page] = 1
        self.num_owned += count
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Own pages that are published or owned already."""
        for page in pages:
            if not self.refs[page]:
                del self.cached[page]
                self.num_owned += 1
            self.refs[page] += 1

    def drop(self, page: int) -> None:
        """Give up one reference. A published page that nobody owns any more becomes the last to be evicted."""
        self.refs[page] -= 1
        if self.refs[page]:
            return
        self.num_owned -= 1
        if self.digests[page] is None:
            self.runs.add(page, 1)
        else:
            self._cache(page)

    def retract(self, page: int, spare: Spare) -> None:
        """Give up a page that holds nothing yet, into what is set aside for the sequence if it adjoins."""
        if spare.start < spare.stop and spare.start != page + 1:
            self.drop(page)
            return
        self.refs[page] = 0
        self.num_owned -= 1
        self._set_aside(spare, page, spare.stop if spare.start < spare.stop else page + 1)

    def return_spare(self, spare: Spare) -> None:
        """Free what is set aside for a sequence."""
        if spare.start < spare.stop:
            self.runs.add(spare.start, spare.stop - spare.start)
        self._set_aside(spare, 0, 0)

    def publish(self, page: int, digest: bytes) -> None:
        """Let others find ``page`` by its content. If the same content is published already, the first page stays."""
        if digest not in self.index and self.digests[page] is None:
            self.index[digest] = page
            self.digests[page] = digest

    def keep(self, digest: bytes) -> int | None:
        """A page for ``digest``, published and owned by nobody; None if none is to be had."""
        if not self.runs.total:
            if not self.cached:
                return None
            self._evict(next(iter(self.cached)))
        page, _ = self.runs.take(1)
        self.publish(page, digest)
        self._cache(page)
        return page

    def touch(self, page: int) -> None:
        """Make a cached page the last to be evicted."""
        if page in self.cached:
            del self.cached[page]
            self._cache(page)

    def clear(self) -> None:
        """Evict all that is cached."""
        while self.cached:
            self._evict(next(iter(self.cached)))

    def spares(self) -> list[Spare]:
        """All that is set aside."""
        return [spare for spare in self._spares if spare.start < spare.stop]

    def check(self) -> None:
        """Verify that each page is in one place only, and that whatever is published can be found.

        Raises:
            AssertionError: It is not so.
        """
        self.runs.check()
        places = [page for page, refs in enumerate(self.refs) if refs]
        assert len(places) == self.num_owned, "owned pages are miscounted"
        places += self.cached
        places += [page for start, length in self.runs.runs().items() for page in range(start, start + length)]
        aside = [page for spare in self.spares() for page in range(spare.start, spare.stop)]
        assert len(aside) == self.num_aside, "pages set aside are miscounted"
        places += aside
        assert sorted(places) == list(range(self.num_pages)), "a page is in two places, or in none"
        published = {digest: page for page, digest in enumerate(self.digests) if digest is not None}
        assert published == self.index, "the index differs from what is published"
        assert all(self.refs[page] or page in self.cached for page in self.index.values()), "a clean page is published"
        assert all(self.digests[page] is not None for page in self.cached), "an unpublished page is cached"

    def _gather(self, count: int, wish: int, spare: Spare, last: int) -> list[int]:
        pages = list(range(spare.start, spare.stop))
        spare.start = spare.stop
        self.num_aside -= len(pages)
        self._make_room(count - len(pages), wish - len(pages))
        while len(pages) < count:
            start = (pages[-1] if pages else last) + 1
            length = self.runs.take_at(start, wish - len(pages)) if start else 0
            if not length:
                start, length = self.runs.take(wish - len(pages))
            used = min(length, count - len(pages))
            pages.extend(range(start, start + used))
            if used < length:
                self._set_aside(spare, start + used, start + length)
        return pages

    def _make_room(self, short: int, wish: int) -> None:
        """Turn other free pages into clean ones until there are ``short``, and ``wish`` neighbours if that is cheap.

        First goes what is set aside beyond measure, then cached prefixes, then the rest of what is set aside.
        """
        runs = self.runs
        while runs.total < short and self.num_aside > self._ample:
            self._steal()
        tries = 0
        while self.cached:
            lacking = short - runs.total
            allowed = max(lacking, short + self._ample - runs.total - self.num_aside)
            if allowed <= 0 or (lacking <= 0 and (tries == TRIES or runs.fits(wish))):
                break
            self._evict_around(next(iter(self.cached)), min(wish, allowed))
            tries += 1
        while runs.total < short:
            self._steal()

    def _steal(self) -> None:
        """Take the far half of the spare that was not stolen from for longest."""
        spare, _ = self._spares.popitem(last=False)
        left = (spare.stop - spare.start) // 2
        if spare.start + left < spare.stop:
            self.runs.add(spare.start + left, spare.stop - spare.start - left)
        self._set_aside(spare, spare.start, spare.start + left)

    def _set_aside(self, spare: Spare, start: int, stop: int) -> None:
        self.num_aside += stop - start - (spare.stop - spare.start)
        self._spares.pop(spare, None)
        spare.start = start
        spare.stop = stop
        if start < stop:
            self._spares[spare] = None

    def _cache(self, page: int) -> None:
        self._clock += 1
        self.cached[page] = self._clock

    def _evict_around(self, page: int, count: int) -> None:
        """Evict ``page``, and up to ``count`` in all with its cached neighbours that are about as old.

        Pages of one sequence lie side by side and were given up together. Strictly one by one in order of age, they
        would be handed out again as single pages, and in the end no two pages of a sequence would be neighbours.
        """
        latest = self.cached[page] + self._ample
        self._evict(page)
        count -= 1
        for step in (-1, 1):
            near = page + step
            while count > 0 and self.cached.get(near, latest + 1) <= latest:
                self._evict(near)
                count -= 1
                near += step

    def _evict(self, page: int) -> None:
        del self.cached[page]
        digest = self.digests[page]
        assert digest is not None
        del self.index[digest]
        self.digests[page] = None
        self.runs.add(page, 1)
        self._stats.evictions += 1
