"""One continuation on its way: tokens, pages, and how far the model has read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference_pio.interfaces import CompletionOutput

if TYPE_CHECKING:
    from inference_pio.core._sampler import SamplerState
    from inference_pio.interfaces import PositionLogprobs, Request
    from inference_pio.processing import IncrementalDetokenizer


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """State of one of the ``n`` continuations of a request.

    Attributes:
        request: What was asked for.
        index: Which of the ``n`` continuations.
        tokens: Prompt and what was generated so far.
        max_length: Tokens at which it ends, prompt included.
        sampler: Its generator and what its penalties need.
        detokenizer: Turns tokens into text; None without a tokenizer.
        num_computed: Tokens whose keys and values are in the cache.
        pages: Its pages of the cache, in order.
        output: What the caller gets.
        prompt_logprobs: Per position of the prompt so far, if asked for.
        started: When the first step worked on it, in seconds of ``time.perf_counter``.
        first_token: When its first token came.
        last_token: When its latest token came.
    """

    request: Request
    index: int
    tokens: list[int]
    max_length: int
    sampler: SamplerState
    detokenizer: IncrementalDetokenizer | None
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)
    output: CompletionOutput = field(init=False)
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def __post_init__(self) -> None:
        logprobs: list[PositionLogprobs] | None = None if self.request.params.logprobs is None else []
        cumulative = None if logprobs is None else 0.0
        self.output = CompletionOutput(
            index=self.index, text="", token_ids=[], logprobs=logprobs, cumulative_logprob=cumulative
        )
        if self.index == 0 and self.request.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def remaining(self) -> int:
        """Tokens that the model has yet to read before the next one can be sampled; 1 while decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether every position of the prompt needs its logits."""
        return self.prompt_logprobs is not None and self.num_computed < self.prompt_length - 1
