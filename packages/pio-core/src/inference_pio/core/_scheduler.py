"""Who runs in the next step. First come, first served; integers only."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from inference_pio.interfaces import DoesNotFitError

if TYPE_CHECKING:
    from inference_pio.core._pages import PagePool
    from inference_pio.core._sequence import Sequence


class Scheduled(NamedTuple):
    """A sequence and how many of its tokens the next step reads."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """Admits sequences while pages last and shares a token budget among them.

    A sequence gets all the pages that it can ever need when it is admitted, so a running one never has to wait for
    memory. Long prompts are read in chunks behind the sequences that decode.

    Args:
        pool: Pages of the cache.
        max_num_seqs: Sequences that run at once.
        max_step_tokens: Tokens that one step reads at most.
        max_logit_rows: Positions whose logits one step computes at most for one sequence.
        chunked_prefill: Whether a prompt may be read in several steps; otherwise the budget bends to the prompt.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_num_seqs: int,
        max_step_tokens: int,
        max_logit_rows: int,
        chunked_prefill: bool = True,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_step_tokens = max(max_step_tokens, max_num_seqs)  # every decoding sequence gets its token
        self.max_logit_rows = max_logit_rows
        self.chunked_prefill = chunked_prefill
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue ``sequence``.

        Raises:
            DoesNotFitError: It could never be admitted.
        """
        if self.pool.pages_for(sequence.max_length) > self.pool.num_pages:
            capacity = self.pool.num_pages * self.pool.page_size
            raise DoesNotFitError(
                f"request {sequence.request.request_id!r} needs {sequence.max_length} tokens of cache, and the cache "
                f"holds {capacity}",
                hint="lower max_tokens, shorten the prompt or give the model more memory",
            )
        self.waiting.append(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step: decoding sequences first, then prompts under way, then new ones while pages last."""
        plan: list[Scheduled] = []
        budget = self.max_step_tokens
        for sequence in sorted(self.running, key=lambda sequence: sequence.remaining > 1):
            budget -= self._plan(plan, sequence, budget)
        while self.waiting and len(self.running) < self.max_num_seqs and budget > 0:
            pages = self.pool.allocate(self.waiting[0].max_length)
            if pages is None:
                break
            sequence = self.waiting.popleft()
            sequence.pages = pages
            self.running.append(sequence)
            budget -= self._plan(plan, sequence, budget)
        return plan

    def remove(self, sequence: Sequence) -> None:
        """Take ``sequence`` out, waiting or running, and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.free(sequence.pages)
        sequence.pages = []

    def _plan(self, plan: list[Scheduled], sequence: Sequence, budget: int) -> int:
        count = min(sequence.remaining, budget)
        if not self.chunked_prefill and count < sequence.remaining:
            count = 0 if plan else sequence.remaining
        elif sequence.wants_prompt_logprobs and self.chunked_prefill:
            count = min(count, self.max_logit_rows)
        if count > 0:
            plan.append(Scheduled(sequence, count))
        return count
