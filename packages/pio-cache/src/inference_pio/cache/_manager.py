"""Pages, prefixes and states of all sequences."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from inference_pio.cache._check import check_sequences
from inference_pio.cache._host import HostTier
from inference_pio.cache._moves import MoveQueue
from inference_pio.cache._pool import PagePool
from inference_pio.cache._prefixes import PrefixIndex, PrefixMatch, first_visible
from inference_pio.cache._sequence import SequencePages
from inference_pio.cache._stats import CacheStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.cache._moves import MoveKind, PageMove
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
        self._moves = MoveQueue()
        self._pools = tuple(PagePool(group.num_pages, self.stats) for group in groups)
        self._host = HostTier(groups)
        self._prefixes = PrefixIndex(groups, self._pools, page_size=page_size, checkpoint_interval=interval)
        self._paged = tuple(index for index, group in enumerate(groups) if group.kind != "state")
        self._windows = tuple((index, group.window) for index, group in enumerate(groups) if group.window is not None)
        self._states = tuple(index for index, group in enumerate(groups) if group.kind == "state")
        self._live: dict[SequencePages, None] = {}

    @property
    def capacity_tokens(self) -> int:
        """Length of the longest sequence that fits, alone and computed token by token; ``sys.maxsize`` if any does."""
        longest = sys.maxsize
        for group in self.groups:
            # A window slides over one page more than it fills.
            if group.kind != "state" and (group.window is None or group.num_pages < self._window_pages(group.window)):
                longest = min(longest, group.num_pages * self.page_size)
        return longest

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
        return self._shortage(self._find(seq, self._hit(seq)), num_tokens)

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
        hit = self._hit(seq)
        found = self._find(seq, hit)
        if self._shortage(found, num_tokens):
            return False
        seq.expected = -(-max(expected, num_tokens) // self.page_size)
        seq.num_cached = seq.num_computed = hit
        seq.published = hit // self.page_size
        for group in self._paged:  # before anything is taken, which might evict them
            self._pools[group].share(page for page in found[group] if page >= 0)
        for group, pages in enumerate(found):
            self._place(seq, group, pages, num_tokens)
        if self._caching:
            if seq.reuse:
                self.stats.queries += len(seq.tokens)
                self.stats.hits += hit
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
        end = -(-num_tokens // self.page_size)
        current, filled = divmod(seq.num_computed, self.page_size)
        needs = []
        for group in self._paged:
            table, pool = seq.tables[group], self._pools[group]
            shared = filled > 0 and pool.refs[table[current]] > 1
            short = max(0, end - len(table))
            if short + shared > pool.num_free:
                return False
            needs.append((group, short, shared))
        for group, short, shared in needs:
            if short or shared:
                self._extend(seq, group, short, current if shared else None)
        seq.writable = self._covered(seq)
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
        if not seq.num_computed <= num_computed <= min(len(seq.tokens), self._covered(seq)):
            msg = (
                f"cannot have computed {num_computed} tokens: {seq.num_computed} were computed before, "
                f"{len(seq.tokens)} are known, and the pages hold {self._covered(seq)}"
            )
            raise ValueError(msg)
        if self._caching:
            self._publish(seq, num_computed // self.page_size)
            if self._states and num_computed and num_computed % self.checkpoint_interval == 0:
                self._checkpoint(seq, num_computed)
        for group, window in self._windows:
            self._slide(seq, group, first_visible(num_computed, window) // self.page_size)
        seq.num_computed = num_computed
        seq.next_event = self._next_event(seq)

    def chunk_end(self, seq: SequencePages, num_tokens: int) -> int:
        """Where a chunk up to ``num_tokens`` should end so that a checkpoint of the states is taken."""
        if not (self._states and self._caching):
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
        if any(not self._pools[group].num_free for group in self._states):
            return None
        twin = SequencePages(tokens, root=seq.root, reuse=seq.reuse, num_groups=len(self.groups))
        twin.digests = seq.digests[: past // self.page_size]
        twin.num_computed, twin.num_cached = past, seq.num_cached
        twin.published, twin.expected, twin.first = past // self.page_size, seq.expected, list(seq.first)
        used = -(-past // self.page_size)
        for group in self._paged:
            twin.tables[group].extend(seq.tables[group][:used])
            self._pools[group].share(page for page in twin.tables[group] if page >= 0)
        for group in self._states:
            twin.tables[group].extend(self._pools[group].take(1, 1, twin.spares[group]))
            self._copy(group, seq.tables[group][0], twin.tables[group][0])
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
        for group in self._paged:
            table = seq.tables[group]
            while len(table) > end:
                self._pools[group].retract(table.pop(), seq.spares[group])
        seq.writable = min(seq.writable, self._covered(seq))

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
        used = -(-seq.num_computed // self.page_size)
        tables = [table[:used] if group in self._paged else table for group, table in enumerate(seq.tables)]
        host = self._host.take(tables)
        if host is None:
            return False
        for group, (table, places) in enumerate(zip(tables, host, strict=True)):
            self._move("out", group, table, places)
        self._vacate(seq)
        seq.tables, seq.host = tuple([] for _ in self.groups), host
        seq.admitted, seq.swapped, seq.promised = False, True, 0
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
        counts = [sum(place >= 0 for place in places) for places in seq.host]
        if any(count > pool.num_free for count, pool in zip(counts, self._pools, strict=True)):
            return False
        for group, (places, count) in enumerate(zip(seq.host, counts, strict=True)):
            pages = iter(self._pools[group].take(count, self._wish(seq, group), seq.spares[group]))
            seq.tables[group].extend(next(pages) if place >= 0 else -1 for place in places)
            self._move("in", group, places, seq.tables[group])
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

    def _hit(self, seq: SequencePages) -> int:
        return self._prefixes.hit(seq) if self._caching and seq.reuse else 0

    def _find(self, seq: SequencePages, hit: int) -> list[list[int]]:
        """Per group the pages of the prefix, -1 where a window does not need one; the checkpoint of a state."""
        end = hit // self.page_size
        found = []
        for group, pool in zip(self.groups, self._pools, strict=True):
            start = end - 1 if group.kind == "state" else 0
            if group.window is not None:
                start = first_visible(hit, group.window) // self.page_size
            pages = [pool.index[digest] for digest in seq.digests[start:end]] if end else []
            found.append(pages if group.kind == "state" else [-1] * start + pages)
        return found

    def _shortage(self, found: list[list[int]], num_tokens: int) -> int:
        short = 0
        for group, pool, pages in zip(self.groups, self._pools, found, strict=True):
            need = 1
            if group.kind != "state":
                need = sum(page >= 0 and not pool.refs[page] for page in pages)
            if group.kind == "full":
                need += max(0, -(-num_tokens // self.page_size) - len(pages))
            short = max(short, need - pool.num_free)
        return short

    def _place(self, seq: SequencePages, group: int, found: list[int], num_tokens: int) -> None:
        """Fill the empty table of a sequence that is admitted."""
        pool, table = self._pools[group], seq.tables[group]
        if group in self._states:
            for checkpoint in found:
                pool.touch(checkpoint)
            table.extend(pool.take(1, 1, seq.spares[group]))
            for checkpoint in found:
                self._copy(group, checkpoint, table[0])
            return
        table.extend(found)
        if self.groups[group].window is None:
            self._extend(seq, group, max(0, -(-num_tokens // self.page_size) - len(table)), None)
        else:
            seq.first[group] = first_visible(seq.num_computed, self.groups[group].window or 0) // self.page_size

    def _extend(self, seq: SequencePages, group: int, count: int, shared: int | None) -> None:
        """Append ``count`` pages, and replace the one at index ``shared`` by a copy."""
        pool, table = self._pools[group], seq.tables[group]
        more = count if shared is None else count + 1
        fresh = pool.take(more, self._wish(seq, group), seq.spares[group], table[-1] if table else -1)
        if shared is not None:
            target = fresh.pop(0)
            self._copy(group, table[shared], target)
            pool.drop(table[shared])
            table[shared] = target
        table.extend(fresh)

    def _wish(self, seq: SequencePages, group: int) -> int:
        """Pages that would best lie side by side from the end of the table on."""
        window = self.groups[group].window
        wish = 1 if group in self._states else seq.expected - len(seq.tables[group])
        return wish if window is None else min(wish, 2 * self._window_pages(window))

    def _window_pages(self, window: int) -> int:
        """Pages that a window can lie on when it starts in the middle of one."""
        return 1 - (1 - window) // self.page_size

    def _covered(self, seq: SequencePages) -> int:
        """Positions for which there is a page in every group."""
        return min((len(seq.tables[group]) * self.page_size for group in self._paged), default=sys.maxsize)

    def _enter(self, seq: SequencePages) -> None:
        seq.admitted = True
        seq.writable = self._covered(seq)
        seq.next_event = self._next_event(seq)
        self._live[seq] = None

    def _next_event(self, seq: SequencePages) -> int:
        event = sys.maxsize
        if self._caching:
            event = (seq.num_computed // self.page_size + 1) * self.page_size
        for group, window in self._windows:
            event = min(event, (seq.first[group] + 1) * self.page_size + window - 1)
        return event

    def _publish(self, seq: SequencePages, end: int) -> None:
        digests = self._prefixes.digests(seq, end)
        self._prefixes.settle(seq, end)
        for group in self._paged:
            pool, table = self._pools[group], seq.tables[group]
            for page in range(max(seq.published, seq.first[group]), end):
                pool.publish(table[page], digests[page])
        seq.published = end

    def _checkpoint(self, seq: SequencePages, num_computed: int) -> None:
        digest = seq.digests[num_computed // self.page_size - 1]
        for group in self._states:
            pool = self._pools[group]
            if digest in pool.index:
                pool.touch(pool.index[digest])
            elif (page := pool.keep(digest)) is not None:
                self._copy(group, seq.tables[group][0], page)

    def _slide(self, seq: SequencePages, group: int, visible: int) -> None:
        table = seq.tables[group]
        for page in range(seq.first[group], visible):
            self._pools[group].drop(table[page])
            table[page] = -1
        seq.first[group] = max(seq.first[group], visible)

    def _vacate(self, seq: SequencePages) -> None:
        """Give up the pages on the device, the deepest first: these are evicted before those that others may share."""
        self._prefixes.settle(seq, seq.promised)
        for pool, table, spare in zip(self._pools, seq.tables, seq.spares, strict=True):
            for page in reversed(table):
                if page >= 0:
                    pool.drop(page)
            pool.return_spare(spare)

    def _copy(self, group: int, source: int, target: int) -> None:
        if source != target:
            self.stats.copies += 1
            self._moves.add("copy", group, source, target)

    def _move(self, kind: MoveKind, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            if source >= 0:
                self._moves.add(kind, group, source, target)


def _require_admitted(seq: SequencePages) -> None:
    if not seq.admitted:
        msg = "the sequence has no pages: admit it first" if not seq.swapped else "the sequence is in host memory"
        raise ValueError(msg)
