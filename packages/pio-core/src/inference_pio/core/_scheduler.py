"""Who runs in the next step. Integers only: tokens, pages, seats."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Literal, NamedTuple

from inference_pio.interfaces import DoesNotFitError, QueueFullError

if TYPE_CHECKING:
    from inference_pio.cache import CacheManager
    from inference_pio.core._sequence import Sequence

Policy = Literal["fcfs", "priority"]


class Scheduled(NamedTuple):
    """A sequence and how many of its tokens the next step reads, drafts included."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """Shares a budget of tokens per step among sequences, and the pages of the cache among those that run.

    - Sequences that decode come first, then prompts under way, in chunks, then new ones: one long prompt never stalls
      the others for more than a chunk.
    - A sequence is admitted when the cache has pages for all its tokens; it gets further pages as it grows. When they
      run out, the sequence that comes last in the order gives its pages back and waits again (recompute), or has them
      moved to host memory (swap).
    - The order is that of arrival (``fcfs``) or by priority, then arrival (``priority``). Among the first ``lookahead``
      of the queue those with more of their prompt in the cache go first, and one whose prefix another is computing
      right now waits for it.
    - Nobody starves: once ``max_overtakes`` sequences that came later have been admitted before it, a sequence is next,
      whatever the policy, and cannot be preempted for the sake of a priority any more.

    Args:
        cache: Hands out pages.
        max_num_seqs: Sequences that run at once.
        max_step_tokens: Tokens that one step reads at most.
        max_logit_rows: Positions whose logits one step computes at most for one sequence.
        chunked_prefill: Whether a prompt may be read in several steps; otherwise the budget bends to the prompt.
        policy: The order of the queue.
        max_waiting: Sequences that may wait; None for no bound.
        max_overtakes: See above.
        lookahead: See above; 1 keeps the order strictly.
    """

    def __init__(
        self,
        cache: CacheManager,
        *,
        max_num_seqs: int,
        max_step_tokens: int,
        max_logit_rows: int,
        chunked_prefill: bool = True,
        policy: Policy = "fcfs",
        max_waiting: int | None = None,
        max_overtakes: int = 64,
        lookahead: int = 64,
    ) -> None:
        self.cache = cache
        self.max_num_seqs = max_num_seqs
        self.max_step_tokens = max(max_step_tokens, max_num_seqs)  # every decoding sequence gets its token
        self.max_logit_rows = max_logit_rows
        self.chunked_prefill = chunked_prefill
        self.policy = policy
        self.max_waiting = max_waiting
        self.max_overtakes = max_overtakes
        self.lookahead = lookahead
        self.waiting: list[Sequence] = []  # in the order of the policy
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._by_arrival: list[Sequence] = []  # the same sequences as ``waiting``
        self._num_arrived = 0
        self._num_left = 0  # sequences that left the queue; with those in it, all that arrived
        self._plan: dict[Sequence, int] = {}

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def free_seats(self) -> int:
        """Sequences that may run beside those that do."""
        return self.max_num_seqs - sum(sequence.seats for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that has just arrived.

        Raises:
            QueueFullError: As many wait as may.
            DoesNotFitError: It could never be admitted, or never finish.
        """
        if self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            raise QueueFullError(
                f"{len(self.waiting)} requests wait already, and the queue holds {self.max_waiting}",
                hint="try again later, or raise max_waiting",
            )
        needed = sequence.max_length * sequence.seats
        if not self.cache.can_hold(needed):
            raise DoesNotFitError(
                f"request {sequence.state.request.request_id!r} needs {needed} tokens of cache, and the cache "
                f"holds {self.cache.capacity_tokens}",
                hint="lower max_tokens, shorten the prompt or give the model more memory",
            )
        sequence.order = self._num_arrived
        self._num_arrived += 1
        self._enqueue(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Queue a sequence again that has run, or that begins in the middle; its place is that of its arrival."""
        self._num_left -= 1
        self._enqueue(sequence)

    def run(self, sequence: Sequence) -> None:
        """Let a sequence run that was forked from a running one."""
        self.running.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take ``sequence`` out, waiting or running, and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self._dequeue(sequence)
        self.cache.release(sequence.pages)

    def schedule(self) -> list[Scheduled]:
        """The next step. Empty only if there is no work."""
        self._plan = {}
        if self.policy == "priority":
            self._yield_to_priority()
        left = self._plan_running()
        self._plan_waiting(left)
        return [Scheduled(sequence, count) for sequence, count in self._plan.items()]

    def _plan_running(self) -> int:
        """Plan the sequences that run; returns what is left of the budget."""
        budget = self.max_step_tokens
        decoding = [sequence for sequence in self.running if sequence.remaining == 1]
        for place, sequence in enumerate(decoding):
            if not sequence.pages.admitted:
                continue  # preempted for one before it
            spare = budget - (len(decoding) - place)
            budget -= self._plan_decode(sequence, max(0, spare))
        # A new list: what was preempted above runs no more.
        for sequence in sorted((one for one in self.running if one.remaining > 1), key=self._rank):
            if sequence.pages.admitted and budget > 0:
                budget -= self._plan_chunk(sequence, budget)
        return self.max_step_tokens - sum(self._plan.values())

    def _plan_decode(self, sequence: Sequence, spare: int) -> int:
        """Plan one token of ``sequence`` and as many of its drafts as tokens and pages are left for."""
        computed = sequence.pages.num_computed
        count = 1 + min(len(sequence.drafts), spare)
        if count > 1 and not self.cache.grow(sequence.pages, computed + count):
            count = 1  # nobody is preempted for a guess
        if not self._grow(sequence, computed + count):
            return 0
        del sequence.drafts[count - 1 :]
        self._plan[sequence] = count
        return count

    def _plan_chunk(self, sequence: Sequence, budget: int) -> int:
        """Plan a chunk of the tokens that ``sequence`` still has to read; returns its length, 0 if it cannot run."""
        count = self._chunk(sequence, budget)
        if count == 0 or not self._grow(sequence, sequence.pages.num_computed + count):
            return 0
        self._plan[sequence] = count
        return count

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        count = min(sequence.remaining, budget)
        if not self.chunked_prefill:
            return sequence.remaining if count == sequence.remaining or not self._plan else 0
        if sequence.wants_prompt_logprobs:
            count = min(count, self.max_logit_rows)
        computed = sequence.pages.num_computed
        return self.cache.chunk_end(sequence.pages, computed + count) - computed

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Get pages for ``num_tokens`` tokens, at the cost of whoever comes last; False if that is ``sequence``."""
        while not self.cache.grow(sequence.pages, num_tokens):
            victim = max(self.running, key=self._rank)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._plan.pop(victim, None)
        victim.drafts.clear()
        victim.state.num_preemptions += 1
        self.num_preemptions += 1
        if not self.cache.swap_out(victim.pages):
            self.cache.release(victim.pages)
        self.requeue(victim)

    def _plan_waiting(self, budget: int) -> None:
        while self.waiting and budget > 0:
            sequence = self._next()
            if sequence is None or not self._admit(sequence):
                return
            count = self._plan_chunk(sequence, budget)
            if count == 0:
                return
            budget -= count

    def _next(self) -> Sequence | None:
        """Who is admitted next, or None if all that could be wait for a prefix that is being computed."""
        oldest = self._by_arrival[0]
        if self._num_left - oldest.order >= self.max_overtakes:
            oldest.protected = True
            return oldest
        best, most = None, -1
        head = self.waiting[0].state.request.priority
        for sequence in self.waiting[: self.lookahead]:
            if self.policy == "priority" and sequence.state.request.priority != head:
                break
            if sequence.pages.swapped:
                return sequence
            cached, promised = self.cache.lookup(sequence.pages)
            if promised == cached and cached > most:
                best, most = sequence, cached
        return best

    def _admit(self, sequence: Sequence) -> bool:
        """Move ``sequence`` from the queue to those that run, if there are seats and pages for it."""
        if self.free_seats < sequence.seats:
            return False
        pages = sequence.pages
        if pages.swapped:
            placed = self.cache.swap_in(pages)
        else:
            placed = self.cache.admit(pages, self._wanted(sequence), expected=sequence.max_length)
        if placed:
            self._dequeue(sequence)
            self.running.append(sequence)
        return placed

    def _yield_to_priority(self) -> None:
        """Preempt whoever comes last for the head of the queue, where that is more important and does not fit."""
        while self.waiting and self.running:
            head, last = self.waiting[0], max(self.running, key=self._rank)
            if last.protected or last.state.request.priority <= head.state.request.priority:
                return
            if self.free_seats >= head.seats and self.cache.missing(head.pages, self._wanted(head)) == 0:
                return
            self._preempt(last)

    def _wanted(self, sequence: Sequence) -> int:
        """Tokens to get pages for at admission: some to grow, or it would take the last page from those that run."""
        return min(len(sequence.tokens) + self.cache.page_size, sequence.max_length)

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=self._queue_key)
        insort(self._by_arrival, sequence, key=_arrival)

    def _dequeue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self._by_arrival.remove(sequence)
        self._num_left += 1

    def _rank(self, sequence: Sequence) -> tuple[bool, int, int, int]:
        """Place among those that run: the last one is preempted first."""
        return not sequence.protected, *self._queue_key(sequence)

    def _queue_key(self, sequence: Sequence) -> tuple[int, int, int]:
        priority = sequence.state.request.priority if self.policy == "priority" else 0
        return priority, sequence.order, sequence.index


def _arrival(sequence: Sequence) -> tuple[int, int]:
    return sequence.order, sequence.index
