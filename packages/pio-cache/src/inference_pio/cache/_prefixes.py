"""Which prefix of a sequence is stored already, or will be soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from inference_pio.cache._hashes import PageHasher
from inference_pio.cache._tokens import first_visible

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from inference_pio.cache._pool import PagePool
    from inference_pio.cache._sequence import SequencePages
    from inference_pio.interfaces import CacheGroup


class PrefixMatch(NamedTuple):
    """What admission would find.

    Attributes:
        cached: Tokens found now, a multiple of the page size and less than all.
        promised: Tokens found once the sequences that run now have computed what they were admitted for.
    """

    cached: int
    promised: int


class PrefixIndex:
    """Finds the longest prefix that every group still has, and keeps count of what is being computed.

    After ``L`` tokens a sequence goes on from the pages of ``[0, L)`` in groups that keep all, from the pages that the
    query at ``L`` can see in each window, and from states taken at ``L`` exactly.

    Args:
        groups: The groups.
        pools: Their pages.
        page_size: Tokens per page.
        checkpoint_interval: Tokens between checkpoints of states.
    """

    def __init__(
        self, groups: Sequence[CacheGroup], pools: Sequence[PagePool], *, page_size: int, checkpoint_interval: int
    ) -> None:
        self._page_size = page_size
        self._interval = checkpoint_interval
        self._hasher = PageHasher(page_size)
        paged = list(zip(groups, pools, strict=True))
        self._full = [pool.index for group, pool in paged if group.kind == "full"]
        self._windows = [(pool.index, group.window) for group, pool in paged if group.window is not None]
        self._states = [pool.index for group, pool in paged if group.kind == "state"]
        self.promises: dict[bytes, int] = {}

    def root(self, salt: str) -> bytes:
        """Digest before the first page of sequences with this salt."""
        return self._hasher.root(salt)

    def digests(self, seq: SequencePages, num_pages: int) -> list[bytes]:
        """Digests of at least the first ``num_pages`` pages of ``seq``; computed once."""
        if len(seq.digests) < num_pages:
            self._hasher.extend(seq.digests, seq.tokens, num_pages, seq.root)
        return seq.digests

    def match(self, seq: SequencePages) -> PrefixMatch:
        """The longest prefix of ``seq`` stored now, and the longest one promised."""
        num_pages = (len(seq.tokens) - 1) // self._page_size
        digests = self.digests(seq, num_pages)[:num_pages]
        cached = self._reach(digests, ())
        promised = self._reach(digests, self.promises) if self.promises and cached < num_pages else cached
        return PrefixMatch(cached * self._page_size, max(cached, promised) * self._page_size)

    def find(self, seq: SequencePages) -> list[bytes]:
        """Digests of the pages of the longest prefix stored now."""
        num_pages = (len(seq.tokens) - 1) // self._page_size
        digests = self.digests(seq, num_pages)[:num_pages]
        return digests[: self._reach(digests, ())]

    def promise(self, seq: SequencePages, num_pages: int) -> None:
        """Announce that ``seq`` will publish its pages up to ``num_pages``."""
        for digest in self.digests(seq, num_pages)[seq.published : num_pages]:
            self.promises[digest] = self.promises.get(digest, 0) + 1
        seq.promised = num_pages

    def settle(self, seq: SequencePages, num_pages: int) -> None:
        """Take back what ``seq`` promised of its pages from ``seq.published`` up to ``num_pages``: kept, or broken."""
        if seq.promised <= seq.published:
            return
        for digest in seq.digests[seq.published : min(num_pages, seq.promised)]:
            count = self.promises[digest] - 1
            if count:
                self.promises[digest] = count
            else:
                del self.promises[digest]

    def check(self, live: Iterable[SequencePages]) -> None:
        """Verify that exactly what live sequences still have to compute is promised.

        Raises:
            AssertionError: It is not.
        """
        counts: dict[bytes, int] = {}
        for seq in live:
            for digest in seq.digests[seq.published : seq.promised]:
                counts[digest] = counts.get(digest, 0) + 1
        assert counts == self.promises, "promises that nobody keeps, or too few"

    def _reach(self, digests: Sequence[bytes], promises: Container[bytes]) -> int:
        """Pages of the longest prefix that is stored, or promised."""
        end = len(digests)
        for index in self._full:
            end = next(
                (page for page, key in enumerate(digests[:end]) if key not in index and key not in promises), end
            )
        if not (self._windows or self._states):
            return end
        size, reach = self._page_size, 0
        seen = [0] * len(self._windows)  # pages in sequence that each window has, up to the current one
        for page, digest in enumerate(digests[:end], start=1):
            coming = digest in promises
            whole = True
            for number, (index, window) in enumerate(self._windows):
                seen[number] = seen[number] + 1 if coming or digest in index else 0
                whole &= seen[number] >= page - first_visible(page * size, window) // size
            if not (coming and page * size % self._interval == 0):
                whole &= all(digest in index for index in self._states)
            if whole:
                reach = page
        return reach
