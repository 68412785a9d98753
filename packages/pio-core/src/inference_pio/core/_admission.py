"""From a request to sequences that can be queued: everything that can be refused is refused here, at once."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inference_pio.core._bad_words import bad_word_sequences
from inference_pio.core._beams import BeamSearch
from inference_pio.core._pooling import Pool
from inference_pio.core._sampler_state import SamplerState
from inference_pio.core._sequence import RequestState, Sequence
from inference_pio.core._structure import StructureCompiler
from inference_pio.interfaces import (
    BeamSearchParams,
    InvalidRequestError,
    PoolingParams,
    PromptTooLongError,
    SamplingParams,
    UnsupportedError,
)
from inference_pio.processing import IncrementalDetokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence as Many

    from inference_pio.cache import CacheManager
    from inference_pio.core._structure import Structure
    from inference_pio.interfaces import Request
    from inference_pio.processing import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What requests may ask for.

    Attributes:
        vocab_size: Tokens that the model knows.
        eos_token_ids: Tokens that end a continuation.
        max_model_len: Tokens of prompt and continuation together.
        max_num_seqs: Sequences that run at once.
        logprobs: Whether log-probabilities may be asked for.
        hidden_size: ``E``, where prompts may be embedded; None where they may not.
    """

    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    max_num_seqs: int
    logprobs: bool = True
    hidden_size: int | None = None


class Admission:
    """Checks requests and makes their sequences.

    Args:
        limits: What requests may ask for.
        tokenizer: Turns tokens into text; None leaves texts empty.
        cache: Hands out pages.
    """

    def __init__(self, limits: EngineLimits, tokenizer: Tokenizer | None, cache: CacheManager) -> None:
        self.limits = limits
        self.tokenizer = tokenizer
        self._cache = cache
        self._compiler: StructureCompiler | None = None
        if tokenizer is not None:
            self._compiler = StructureCompiler(tokenizer, limits.vocab_size, limits.eos_token_ids)

    def build(
        self, request: Request, *, arrived: float | None = None, structure: Structure | None = None
    ) -> RequestState:
        """The state of a new request, its sequences not queued yet.

        Args:
            request: What is asked for.
            arrived: When it came, in seconds of ``time.perf_counter``; None for now.
            structure: Its form, where it was compiled before.

        Raises:
            InvalidRequestError: It can never be served.
            UnsupportedError: An embedding is asked for, and there are none.
        """
        self._check_prompt(request)
        now = time.perf_counter() if arrived is None else arrived
        if isinstance(request.params, BeamSearchParams):
            return self._build_beams(request, request.params, now)
        if isinstance(request.params, PoolingParams):
            return self._build_pool(request, request.params, now)
        return self._build_samples(request, request.params, now, structure)

    def compiler(self) -> StructureCompiler:
        """What makes the forms of texts. Safe to share between threads.

        Raises:
            InvalidRequestError: There is no tokenizer.
        """
        if self._compiler is None:
            self._tokenizer_for("structured_outputs")
        assert self._compiler is not None
        return self._compiler

    def _build_samples(
        self, request: Request, params: SamplingParams, now: float, structure: Structure | None
    ) -> RequestState:
        self._check_sampling(params)
        if structure is None and params.structured_outputs is not None:
            structure = self.compiler().compile(params.structured_outputs)
        words: Many[tuple[int, ...]] = ()
        if params.bad_words is not None:
            words = bad_word_sequences(self._tokenizer_for("bad_words"), params.bad_words)
        state = RequestState(request=request, arrived=now)
        if params.prompt_logprobs is not None:
            state.prompt_logprobs = [None]
        end_ids = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            end_ids |= self.limits.eos_token_ids
        for index in range(params.num_sequences):
            sequence = self._sequence(state, index, self._max_length(request, params.max_tokens))
            sequence.sampler = SamplerState(
                params, request.prompt_token_ids, index=index, end_ids=end_ids, bad_words=words
            )
            sequence.detokenizer = self._detokenizer(request, params)
            sequence.structure = None if structure is None else structure.fork()
            state.sequences.append(sequence)
        first, *rest = state.sequences
        first.children = rest
        return state

    def _build_beams(self, request: Request, params: BeamSearchParams, now: float) -> RequestState:
        if params.beam_width > self.limits.max_num_seqs:
            raise InvalidRequestError(
                f"beam_width {params.beam_width} is above the {self.limits.max_num_seqs} sequences that run at once",
                hint="lower beam_width or raise max_num_seqs",
            )
        length = self._max_length(request, params.max_tokens)
        search = replace(params, max_tokens=length - len(request.prompt_token_ids))
        end_ids = frozenset() if params.ignore_eos else self.limits.eos_token_ids
        state = RequestState(request=request, arrived=now, beams=BeamSearch(search, end_ids))
        first = self._sequence(state, 0, length)
        first.seats = params.beam_width
        state.sequences.append(first)
        return state

    def _build_pool(self, request: Request, params: PoolingParams, now: float) -> RequestState:
        hidden_size = self.limits.hidden_size
        if hidden_size is None:
            raise UnsupportedError(
                "there are no embeddings of this model: its plugin does not declare the capability 'embed', or its "
                "executor hands out no hidden states",
                hint="generate with it, or embed with another",
            )
        state = RequestState(request=request, arrived=now)
        pool = Pool(params, state.prompt_length, hidden_size)
        sequence = self._sequence(state, 0, state.prompt_length, reuse=not pool.reads_all)
        sequence.pool = pool
        state.sequences.append(sequence)
        return state

    def _sequence(self, state: RequestState, index: int, max_length: int, *, reuse: bool = True) -> Sequence:
        request = state.request
        tokens = list(request.prompt_token_ids)
        reuse = reuse and state.prompt_logprobs is None
        pages = self._cache.open(tokens, salt=request.cache_salt, reuse=reuse)
        return Sequence(state=state, index=index, tokens=tokens, max_length=max_length, pages=pages)

    def _max_length(self, request: Request, max_tokens: int | None) -> int:
        length = len(request.prompt_token_ids)
        room = self.limits.max_model_len - length
        return length + (room if max_tokens is None else min(room, max_tokens))

    def _detokenizer(self, request: Request, params: SamplingParams) -> IncrementalDetokenizer | None:
        if self.tokenizer is None:
            return None
        return IncrementalDetokenizer(
            self.tokenizer,
            stop=params.stop_strings,
            skip_special_tokens=params.skip_special_tokens,
            include_stop=params.include_stop_str_in_output,
            prompt_token_ids=request.prompt_token_ids,
        )

    def _tokenizer_for(self, name: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequestError(f"{name} needs a tokenizer, and this model has none", hint=f"leave {name} out")
        return self.tokenizer

    def _check_prompt(self, request: Request) -> None:
        prompt, limits = request.prompt_token_ids, self.limits
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens", hint="give some text or at least one token id")
        if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
            stray = next(token_id for token_id in prompt if not 0 <= token_id < limits.vocab_size)
            raise InvalidRequestError(f"token id {stray} is not in the vocabulary of {limits.vocab_size} tokens")
        if isinstance(request.params, PoolingParams):
            if len(prompt) > limits.max_model_len:
                raise PromptTooLongError(
                    f"the prompt has {len(prompt)} tokens, and the context holds {limits.max_model_len}",
                    hint="shorten it or embed it in parts, or raise max_model_len if the model allows it",
                )
        elif len(prompt) >= limits.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens, and the context holds {limits.max_model_len} with the answer",
                hint="shorten the prompt, or raise max_model_len if the model allows it",
            )
        # A caller may hand over anything, whatever the annotations say.
        salt: object = request.cache_salt
        if not isinstance(salt, str):
            raise InvalidRequestError(f"cache_salt must be text, got {salt!r}")
        timeout: object = request.timeout_s
        if timeout is None:
            return
        if not isinstance(timeout, int | float) or isinstance(timeout, bool):
            raise InvalidRequestError(f"timeout_s must be a number of seconds, got {timeout!r}")
        if not timeout > 0:
            raise InvalidRequestError(f"timeout_s must be above 0, got {timeout!r}")

    def _check_sampling(self, params: SamplingParams) -> None:
        limits = self.limits
        named = {*(params.logit_bias or ()), *(params.stop_token_ids or ())}
        if out_of_vocabulary := sorted(token_id for token_id in named if token_id >= limits.vocab_size):
            raise InvalidRequestError(
                f"token id {out_of_vocabulary[0]} in logit_bias or stop_token_ids is not in the vocabulary of "
                f"{limits.vocab_size} tokens"
            )
        if not limits.logprobs and (params.logprobs is not None or params.prompt_logprobs is not None):
            raise InvalidRequestError(
                "the model's plugin does not declare the capability 'logprobs'", hint="leave logprobs out"
            )
        if params.stop_strings and self.tokenizer is None:
            raise InvalidRequestError(
                "stop strings need a tokenizer, and this model has none", hint="use stop_token_ids"
            )
