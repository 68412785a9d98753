"""A request on its way, and its continuations: tokens, pages, and what they have become so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference_pio.interfaces import CompletionOutput, RequestMetrics, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.cache import SequencePages
    from inference_pio.core._beams import BeamSearch
    from inference_pio.core._pooling import Pool
    from inference_pio.core._sampler_state import SamplerState
    from inference_pio.core._structure import Structure
    from inference_pio.interfaces import FinishReason, PioError, PositionLogprobs, Request
    from inference_pio.processing import IncrementalDetokenizer


@dataclass(slots=True, kw_only=True, eq=False)
class RequestState:
    """What the engine keeps of one request.

    Times are seconds of ``time.perf_counter``.

    Attributes:
        request: What was asked for.
        arrived: When it was added.
        sequences: Its continuations, by index; for a beam search the beams that live.
        beams: The search, if it is one.
        prompt_logprobs: Per position of the prompt so far, if asked for.
        finish_reason: Why the whole request ended early (cancelled, late, failed); None otherwise.
        error: Why it failed.
        started: When the first step worked on it.
        first_token: When its first token came.
        last_token: When its latest token came.
        cached_tokens: Tokens of the prompt found in the cache at the first admission.
        num_preemptions: How often its sequences had to give their pages back.
        counted: Whether the metrics have it among the requests that ended.
        embedding: What the prompt was pooled to, once it is.
    """

    request: Request
    arrived: float
    sequences: list[Sequence] = field(default_factory=list)
    beams: BeamSearch | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    error: PioError | None = None
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    cached_tokens: int = 0
    num_preemptions: int = 0
    counted: bool = False
    embedding: NDArray[np.float32] | None = None

    @property
    def params(self) -> SamplingParams:
        """How to sample; only for a request that samples."""
        params = self.request.params
        assert isinstance(params, SamplingParams)
        return params

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def picks_best(self) -> bool:
        """Whether more continuations are generated than come back."""
        params = self.request.params
        return isinstance(params, SamplingParams) and params.num_sequences > params.n

    @property
    def finished(self) -> bool:
        """Whether every continuation has ended."""
        if self.finish_reason is not None:
            return True
        if self.beams is not None:
            return self.beams.done
        return all(sequence.output.finished for sequence in self.sequences)

    def metrics(self) -> RequestMetrics | None:
        """Where its time went so far; None before the first token, or the embedding."""
        if self.started is None or self.first_token is None or self.last_token is None:
            return None
        return RequestMetrics(
            queue_s=self.started - self.arrived,
            ttft_s=self.first_token - self.arrived,
            prefill_s=self.first_token - self.started,
            decode_s=self.last_token - self.first_token,
            cached_tokens=self.cached_tokens,
            num_preemptions=self.num_preemptions,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One continuation of a request.

    Attributes:
        state: The request that it belongs to.
        index: Which of the continuations.
        tokens: Prompt and what was generated so far.
        max_length: Tokens at which it ends, prompt included.
        pages: Its pages of the cache.
        order: Number of the request in the order of arrival, given by the scheduler.
        seats: How many of the sequences that may run at once it counts for: a search keeps seats free for its beams.
        sampler: Its draws and what its penalties need; None for a beam, and where nothing is drawn.
        detokenizer: Turns tokens into text; None without a tokenizer, and without a sampler.
        pool: What its hidden states become, where an embedding was asked for; it ends when that is whole.
        structure: The form that its text must have, or None.
        children: Continuations that begin where this one's prompt ends; empty once they have begun.
        drafts: Tokens proposed to follow ``tokens``, to be verified by the next step.
        candidates: Of a beam: the most likely next tokens, until all beams of the search have theirs.
        protected: Whether it waited so long that only memory can preempt it.
        last_token: When its latest token came, in seconds of ``time.perf_counter``.
        output: What the caller gets.
    """

    state: RequestState
    index: int
    tokens: list[int]
    max_length: int
    pages: SequencePages
    order: int = 0
    seats: int = 1
    sampler: SamplerState | None = None
    detokenizer: IncrementalDetokenizer | None = None
    pool: Pool | None = None
    structure: Structure | None = None
    children: list[Sequence] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    candidates: list[tuple[int, float]] | None = None
    protected: bool = False
    last_token: float | None = None
    output: CompletionOutput = field(init=False)

    def __post_init__(self) -> None:
        params = self.state.request.params
        wanted = isinstance(params, SamplingParams) and params.logprobs is not None
        counted = wanted or (isinstance(params, SamplingParams) and params.num_sequences > params.n)
        self.output = CompletionOutput(
            index=self.index,
            text="",
            token_ids=[],
            logprobs=[] if wanted else None,
            cumulative_logprob=0.0 if counted else None,
        )

    @property
    def num_computed(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return self.pages.num_computed

    @property
    def remaining(self) -> int:
        """Tokens that the model has yet to read before the next one can be chosen.

        1 while decoding; 0 for a beam whose fellows are behind.
        """
        return 0 if self.candidates is not None else len(self.tokens) - self.pages.num_computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether positions of the prompt that are still to be read need their logits."""
        logprobs = self.state.prompt_logprobs
        return self.index == 0 and logprobs is not None and len(logprobs) < self.state.prompt_length
