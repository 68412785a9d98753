"""Requests, and what comes back: the result shapes of vLLM's offline API, and events for streams."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.interfaces._errors import PioError
    from inference_pio.interfaces._sampling import BeamSearchParams, PoolingParams, SamplingParams


class FinishReason(StrEnum):
    """Why a continuation ended."""

    STOP = "stop"
    """An end token, a stop token or a stop string."""
    LENGTH = "length"
    """``max_tokens`` or the end of the context."""
    ABORT = "abort"
    """Cancelled by the caller."""
    TIMEOUT = "timeout"
    """Its deadline passed."""
    ERROR = "error"
    """The step that computed it failed."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate at one position.

    Attributes:
        logprob: Natural log of its probability under the model, before any sampling parameter.
        rank: 1 for the most likely token of the vocabulary.
        decoded_token: Its text, or None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""Candidates of one position, by token id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to continue or to embed.

    Attributes:
        request_id: Chosen by the caller, unique among running requests.
        prompt_token_ids: The prompt; at least one token.
        params: How to continue it, or how to pool its hidden states.
        prompt: The text that the tokens came from, if any.
        priority: Who goes first under the priority policy: the lower number.
        timeout_s: Seconds from arrival after which it ends with what it has; None waits for ever.
        cache_salt: Cached prefixes are shared only between requests of one salt: a tenant's name, a secret.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams | BeamSearchParams | PoolingParams
    prompt: str | None = None
    priority: int = 0
    timeout_s: float | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Where the time of a request went so far, in seconds. An embedding counts as its first token, and its last.

    Attributes:
        queue_s: From arrival to the first step that worked on it.
        ttft_s: From arrival to the first token.
        prefill_s: From the first step that worked on it to the first token.
        decode_s: From the first token to the latest.
        cached_tokens: Tokens of the prompt that were found in the cache.
        num_preemptions: How often it had to give its pages back and wait.
    """

    queue_s: float
    ttft_s: float
    prefill_s: float
    decode_s: float
    cached_tokens: int = 0
    num_preemptions: int = 0


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One continuation.

    Attributes:
        index: Which of the ``n`` continuations.
        text: Its text; empty without a tokenizer.
        token_ids: Its tokens, including the one that ended it.
        cumulative_logprob: Sum of the chosen tokens' log-probabilities, or None if they were not asked for.
        logprobs: Per token, the candidates asked for; None if they were not.
        finish_reason: Why it ended; None while it goes on.
        stop_reason: The stop string or the stop token that ended it; None for an end token of the model.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        """Whether the continuation has ended."""
        return self.finish_reason is not None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its continuations, or its embedding.

    Attributes:
        request_id: Of the request.
        prompt: Text of the prompt, or None if it came as tokens.
        prompt_token_ids: Tokens of the prompt.
        prompt_logprobs: Per position of the prompt, the candidates asked for; None first, since nothing predicts it.
        outputs: ``n`` continuations, by index; of an embedding one that has no token and says how it ended.
        finished: Whether all of them have ended.
        metrics: Where the time went; None while it goes on, and where no token came.
        error: Why the request failed, where its finish reason is ``error``.
        embedding: float32 (E,), once it is whole, where that was asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics | None = None
    error: PioError | None = None
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingOutput:
    """A prompt and its embedding.

    Attributes:
        prompt: Text of the prompt, or None if it came as tokens.
        prompt_token_ids: Tokens of the prompt.
        embedding: float32 (E,).
        metrics: Where the time went.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    embedding: NDArray[np.float32]
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One step forward of one continuation, for streams.

    Attributes:
        request_id: Of the request.
        index: Which of the ``n`` continuations.
        token_id: The token; None where the continuation ends without one: cancelled, late, failed, embedded.
        text: Text that became certain with it; may be empty (partial UTF-8, possible stop string).
        logprobs: Candidates at this position, if asked for.
        finish_reason: Why the continuation ended with this token; None if it goes on.
        stop_reason: As in :class:`CompletionOutput`.
        metrics: Where the time of the request went up to here; None before its first token.
        error: As in :class:`RequestOutput`.
    """

    request_id: str
    index: int
    token_id: int | None
    text: str
    logprobs: PositionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    metrics: RequestMetrics | None = None
    error: PioError | None = None
