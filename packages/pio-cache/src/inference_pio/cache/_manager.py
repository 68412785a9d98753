"""Pages, prefixes and states of all sequences."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from inference_pio.cache._check import check_sequences
from inference_pio.cache._groups import PageGroups
from inference_pio.cache._host import HostTier
from inference_pio.cache._moves import MoveQueue
from inference_pio.cache._prefixes import PrefixIndex, PrefixMatch
from inference_pio.cache._sequence import SequencePages
from inference_pio.cache._stats import CacheStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.cache._moves import PageMove
    from inference_pio.interfaces import CacheGroup

# Pages between two checkpoints of a state. A state weighs as much as many pages, so not each page has one.
CHECKPOINT_PAGES = 16


class CacheManager:
    """Decides which page of which group holds what. Holds no tensor; not for use from several threads at once.

    Args:
        groups: The pools, as :func:`~inference_pio.cache.plan_groups` sizes them.
        page_size: Tokens per page.
        prefix_caching: Whether whole pages are published, for later sequences that begin alike.
        checkpoint_interval: Tokens between checkpoints of recurrent states, a multiple of ``page_size``; None means 16
            pages.

    Raises:
        ValueError: No group, or a bad size.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        *,
        page_size: int,
        prefix_caching: bool = True,
        checkpoint_interval: int | None = None,
    ) -> None:
        interval = CHECKPOINT_PAGES * page_size if checkpoint_interval is None else checkpoint_interval
        if not groups or page_size < 1 or interval < 1 or interval % page_size:
            msg = (
                "a cache needs a group, pages of at least 1 token and checkpoints at multiples of them, "
                f"got {len(groups)} groups, page_size {page_size} and checkpoint_interval {interval}"
            )
            raise ValueError(msg)
        self.groups = tuple(groups)
        self.page_size = page_size
        self.checkpoint_interval = interval
        self.stats = CacheStats()
        self._caching = prefix_caching
        self._moves = MoveQueue(self.stats)
        self._groups = PageGroups(groups, self._moves, self.stats, page_size)
        self._pools = self._groups.pools
        self._host = HostTier(groups)
        self._prefixes = PrefixIndex(groups, self._pools, page_size=page_size, checkpoint_interval=interval)
        self._live: dict[SequencePages, None] = {}

    @property
    def capacity_tokens(self) -> int:
        """Length of the longest sequence that fits, alone and computed token by token; ``sys.maxsize`` if any does."""
        return self._groups.capacity

    @property
    def usage(self) -> float:
        """Share of pages that sequences own, in the fullest group."""
        return max(pool.num_owned / pool.num_pages for pool in self._pools)

    def can_hold(self, num_tokens: int) -> bool:
        """Whether a sequence of ``num_tokens`` fits when it is alone."""
        return num_tokens <= self.capacity_tokens

    def num_free(self, group: int = 0) -> int:
        """Pages of ``group`` that nobody owns: clean, set aside, or kept for their content."""
        return self._pools[group].num_free

    def open(self, tokens: list[int], *, salt: str = "", reuse: bool = True) -> SequencePages:
        """A handle for a sequence, without pages yet.

        Args:
            tokens: The caller's own list; it may grow, but what is in it may not change.
            salt: Sequences share pages only with those of the same salt.
            reuse: Whether cached prefixes may be taken (not when logits of the whole prompt are wanted); what is
                computed is published in any case.
        """
        return SequencePages(tokens, root=self._prefixes.root(salt), reuse=reuse, num_groups=len(self.groups))

    def lookup(self, seq: SequencePages) -> PrefixMatch:
        """What admission would find now, and once others have computed what they were admitted for."""
        if not (self._caching and seq.reuse):
            return PrefixMatch(0, 0)
        return self._prefixes.match(seq)

    def missing(self, seq: SequencePages, num_tokens: int) -> int:
        """Pages that admission for ``num_tokens`` lacks, in the group that lacks most; 0 if it would succeed."""
        return self._groups.shortage(self._find(seq), num_tokens)

    def admit(self, seq: SequencePages, num_tokens: int, *, expected: int) -> bool:
        """Take the shared prefix, and pages for the positions before ``num_tokens`` in groups that keep all.

        Windows get their pages in :meth:`grow`. A state starts as a copy of the checkpoint at the end of the prefix.

        Args:
            seq: A sequence without pages.
            num_tokens: Tokens that will be computed; whole pages of them are promised to others.
            expected: Tokens that it may grow to: a run of neighbouring pages is set aside for them where there is one.

        Returns:
            Whether there were pages enough; if not, nothing has changed.

        Raises:
            ValueError: The sequence has pages.
        """
        if seq.admitted or seq.swapped:
            msg = "the sequence is admitted already: release it first"
            raise ValueError(msg)
        digests = self._find(seq)
        if self._groups.shortage(digests, num_tokens):
            return False
        seq.expected = -(-max(expected, num_tokens) // self.page_size)
        seq.published = len(digests)
        seq.num_cached = seq.num_computed = len(digests) * self.page_size
        self._groups.place(seq, digests, num_tokens)
        if self._caching:
            if seq.reuse:
                self.stats.queries += len(seq.tokens)
                self.stats.hits += seq.num_cached
            self._prefixes.promise(seq, max(seq.published, min(num_tokens, len(seq.tokens)) // self.page_size))
        self._enter(seq)
        return True

    def grow(self, seq: SequencePages, num_tokens: int) -> bool:
        """Provide pages, which nobody else owns, for the positions from ``num_computed`` to ``num_tokens - 1``.

        Returns:
            Whether there were pages enough; if not, nothing has changed.

        Raises:
            ValueError: The sequence is not admitted.
        """
        if num_tokens <= seq.writable:
            return True
        _require_admitted(seq)
        if not self._groups.extend(seq, -(-num_tokens // self.page_size)):
            return False
        seq.writable = self._groups.covered(seq)
        return True

    def commit(self, seq: SequencePages, num_computed: int) -> None:
        """Note that the keys, values and states of the positions before ``num_computed`` are stored.

        Publishes pages that became full, gives back those that have left their window, and where ``num_computed`` is a
        multiple of the checkpoint interval queues a copy of each state.

        Raises:
            ValueError: The sequence is not admitted, or has no such tokens or pages.
        """
        if seq.num_computed <= num_computed < seq.next_event:
            seq.num_computed = num_computed
            return
        _require_admitted(seq)
        if not seq.num_computed <= num_computed <= min(len(seq.tokens), self._groups.covered(seq)):
            msg = (
                f"cannot have computed {num_computed} tokens: {seq.num_computed} were computed before, "
                f"{len(seq.tokens)} are known, and the pages hold {self._groups.covered(seq)}"
            )
            raise ValueError(msg)
        if self._caching:
            self._publish(seq, num_computed)
        for group in self._groups.windows:
            group.slide(seq, num_computed)
        seq.num_computed = num_computed
        seq.next_event = self._next_event(seq)

    def chunk_end(self, seq: SequencePages, num_tokens: int) -> int:
        """Where a chunk up to ``num_tokens`` should end so that a checkpoint of the states is taken."""
        if not (self._groups.states and self._caching):
            return num_tokens
        end = num_tokens - num_tokens % self.checkpoint_interval
        return end if end > seq.num_computed else num_tokens

    def fork(self, seq: SequencePages, tokens: list[int]) -> SequencePages | None:
        """A sequence with the same past, whose pages are shared until one of the two writes; states are copied at once.

        Args:
            seq: An admitted sequence.
            tokens: The new sequence's own list; its first ``seq.num_computed`` tokens are those of ``seq``.

        Returns:
            The new sequence, admitted; None if there is no page for its state (nothing has changed then).

        Raises:
            ValueError: ``seq`` is not admitted, or the tokens differ.
        """
        _require_admitted(seq)
        past = seq.num_computed
        if tokens[:past] != seq.tokens[:past]:
            msg = f"the tokens of a fork must begin with the {past} tokens that were computed"
            raise ValueError(msg)
        twin = SequencePages(tokens, root=seq.root, reuse=seq.reuse, num_groups=len(self.groups))
        twin.digests = seq.digests[: past // self.page_size]
        twin.num_computed, twin.num_cached = past, seq.num_cached
        twin.published, twin.expected, twin.first = past // self.page_size, seq.expected, list(seq.first)
        if not self._groups.fork(seq, twin):
            return None
        self._enter(twin)
        if past % self.page_size:
            seq.writable = twin.writable = past
        return twin

    def truncate(self, seq: SequencePages, num_tokens: int) -> None:
        """Give back pages in which no position before ``num_tokens`` lies.

        Raises:
            ValueError: The sequence is not admitted, or ``num_tokens`` is less than what was computed.
        """
        _require_admitted(seq)
        if num_tokens < seq.num_computed:
            msg = f"cannot cut off computed tokens: {num_tokens} are to stay, {seq.num_computed} were computed"
            raise ValueError(msg)
        end = -(-num_tokens // self.page_size)
        for group in self._groups.tokens:
            group.truncate(seq, end)
        seq.writable = min(seq.writable, self._groups.covered(seq))

    def release(self, seq: SequencePages) -> None:
        """Give everything back; what was published stays until it is evicted. Harmless when called twice."""
        if seq.swapped:
            self._host.free(seq.host)
        elif seq.admitted:
            self._vacate(seq)
        self._live.pop(seq, None)
        seq.reset()

    def swap_out(self, seq: SequencePages) -> bool:
        """Move an admitted sequence to host memory; its pages on the device are free once the moves are carried out.

        Returns:
            Whether there was room; if not, nothing has changed. Without host pages there never is.

        Raises:
            ValueError: The sequence is not admitted.
        """
        _require_admitted(seq)
        tables = self._groups.used(seq)
        host = self._host.take(tables)
        if host is None:
            return False
        for number, (table, places) in enumerate(zip(tables, host, strict=True)):
            self._moves.swap("out", number, table, places)
        self._vacate(seq)
        seq.tables, seq.host = tuple([] for _ in tables), host
        seq.admitted, seq.swapped = False, True
        seq.promised = seq.writable = seq.next_event = 0
        return True

    def swap_in(self, seq: SequencePages) -> bool:
        """Move a sequence back from host memory.

        Returns:
            Whether there were pages enough; if not, nothing has changed.

        Raises:
            ValueError: The sequence is not in host memory.
        """
        if not seq.swapped:
            msg = "the sequence is not in host memory"
            raise ValueError(msg)
        if not self._groups.restore(seq, seq.host):
            return False
        for number, (places, table) in enumerate(zip(seq.host, seq.tables, strict=True)):
            self._moves.swap("in", number, places, table)
        self._host.free(seq.host)
        seq.host, seq.swapped, seq.published = (), False, 0
        self._enter(seq)
        return True

    def take_moves(self) -> list[PageMove]:
        """The moves queued since the last call, to be carried out in order before the next step writes."""
        return self._moves.drain()

    def clear(self) -> None:
        """Forget all cached prefixes that no sequence owns."""
        for pool in self._pools:
            pool.clear()

    def check(self) -> None:
        """Verify that each page is owned, free or cached, and only one of these, and that all counts are exact.

        Takes time in the size of the pools and of all sequences.

        Raises:
            AssertionError: Something is wrong, and what.
        """
        for pool in self._pools:
            pool.check()
        check_sequences(self._live, self.groups, self._pools, page_size=self.page_size)
        self._host.check(self._live)
        self._prefixes.check(self._live)

    def _find(self, seq: SequencePages) -> list[bytes]:
        """Digests of the pages of the longest prefix that is stored."""
        return self._prefixes.find(seq) if self._caching and seq.reuse else []

    def _enter(self, seq: SequencePages) -> None:
        seq.admitted = True
        seq.writable = self._groups.covered(seq)
        seq.next_event = self._next_event(seq)
        self._live[seq] = None

    def _next_event(self, seq: SequencePages) -> int:
        full = (seq.num_computed // self.page_size + 1) * self.page_size if self._caching else sys.maxsize
        return min(full, self._groups.next_slide(seq))

    def _publish(self, seq: SequencePages, num_computed: int) -> None:
        end = num_computed // self.page_size
        digests = self._prefixes.digests(seq, end)
        self._prefixes.settle(seq, end)
        for tokens in self._groups.tokens:
            tokens.publish(seq, digests, end)
        seq.published = end
        if num_computed and num_computed % self.checkpoint_interval == 0:
            for states in self._groups.states:
                states.checkpoint(seq, digests[end - 1])

    def _vacate(self, seq: SequencePages) -> None:
        self._prefixes.settle(seq, seq.promised)
        self._groups.vacate(seq)


def _require_admitted(seq: SequencePages) -> None:
    if not seq.admitted:
        msg = "the sequence has no pages: admit it first" if not seq.swapped else "the sequence is in host memory"
        raise ValueError(msg)
