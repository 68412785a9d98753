"""What follows a step: sequences get their tokens, pages are published, continuations begin, what has ended leaves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.core._outcome import final_events, named_logprobs, take_token
from inference_pio.core._sequence import Sequence
from inference_pio.interfaces import EngineError, FinishReason, PoolingParams, StructureError, TokenEvent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference_pio.cache import CacheManager
    from inference_pio.core._beams import BeamSearch
    from inference_pio.core._choose import Candidates, Chosen
    from inference_pio.core._drafting import Drafting
    from inference_pio.core._metrics import EngineMetrics
    from inference_pio.core._scheduler import Scheduled, Scheduler
    from inference_pio.core._sequence import RequestState
    from inference_pio.interfaces import PioError, PositionLogprobs
    from inference_pio.processing import Tokenizer


class Collector:
    """Carries the outcome of a step into the sequences, the cache and the scheduler.

    Args:
        cache: Hands out pages.
        scheduler: Knows who waits and who runs.
        metrics: What is counted.
        tokenizer: Turns tokens into text, or None.
        eos_token_ids: Tokens that end a continuation.
        drafting: Speculation, or None.
    """

    def __init__(
        self,
        cache: CacheManager,
        scheduler: Scheduler,
        metrics: EngineMetrics,
        tokenizer: Tokenizer | None,
        eos_token_ids: frozenset[int],
        drafting: Drafting | None,
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._metrics = metrics
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._drafting = drafting

    def collect(self, plan: list[Scheduled], chosen: Chosen) -> list[TokenEvent]:
        """The events of a step, after everything has taken its effect."""
        now = time.perf_counter()
        for sequence, candidates in chosen.prompts:
            assert sequence.state.prompt_logprobs is not None
            sequence.state.prompt_logprobs.append(named_logprobs(candidates, self._tokenizer))
        events = [event for sequence in chosen.tokens for event in self._take_tokens(sequence, chosen, now)]
        for sequence, count in plan:
            if sequence.pages.admitted:  # not ended by an error just now
                self._commit(sequence, count)
                self._begin_children(sequence)
        for sequence in chosen.tokens:
            if sequence.output.finished:
                self._retire(sequence)
        for sequence, _ in plan:
            if sequence.pool is not None and sequence.pool.whole:
                events += self._take_embedding(sequence, sequence.pool.embedding(), now)
        for sequence, candidates in chosen.beams.items():
            sequence.candidates = [(token_id, logprob) for token_id, (logprob, _) in candidates.items()]
        for state in {sequence.state.request.request_id: sequence.state for sequence in chosen.beams}.values():
            events += self._advance_beams(state, now)
        return events

    def end(self, state: RequestState, reason: FinishReason, error: PioError | None = None) -> list[TokenEvent]:
        """End what is unfinished of a request and give its pages back; one event for each continuation that ends."""
        state.finish_reason = reason
        state.error = error
        events = []
        for sequence in list(state.sequences):
            output = sequence.output
            if output.finished:
                continue
            output.finish_reason = reason
            text = "" if sequence.detokenizer is None else sequence.detokenizer.finish()
            output.text += text
            self._retire(sequence)
            events.append(
                TokenEvent(
                    request_id=state.request.request_id,
                    index=sequence.index,
                    token_id=None,
                    text=text,
                    finish_reason=reason,
                    metrics=state.metrics(),
                    error=error,
                )
            )
        self._count_request(state)
        return final_events(state, self._tokenizer) if state.beams is not None or state.picks_best else events

    def _take_tokens(self, sequence: Sequence, chosen: Chosen, now: float) -> list[TokenEvent]:
        """Give ``sequence`` its new tokens until one of them ends it."""
        if _has_ended(sequence):
            return []  # a fellow of the same request failed in this very step
        tokens, candidates = chosen.tokens[sequence], chosen.logprobs.get(sequence)
        if self._drafting is not None and sequence.drafts:
            self._drafting.verified(sequence, len(sequence.drafts), len(tokens) - 1)
            self._count_drafts(len(sequence.drafts), len(tokens) - 1)
        sequence.drafts = []
        events: list[TokenEvent] = []
        for place, token_id in enumerate(tokens):
            if token_id < 0:
                return events + self.end(sequence.state, FinishReason.ERROR, _no_token(sequence))
            events += self._take_token(sequence, token_id, None if candidates is None else candidates[place], now)
            if _has_ended(sequence):
                break
        return events

    def _take_token(
        self, sequence: Sequence, token_id: int, candidates: Candidates | None, now: float
    ) -> list[TokenEvent]:
        """The event of one token; none where the caller sees the text only at the end."""
        state, output = sequence.state, sequence.output
        named: PositionLogprobs | None = None
        if candidates is not None and output.cumulative_logprob is not None:
            output.cumulative_logprob += candidates[token_id][0]
            if output.logprobs is not None:
                named = named_logprobs(candidates, self._tokenizer)
                output.logprobs.append(named)
        text = take_token(sequence, token_id, self._eos_token_ids)
        self._time_token(sequence, now)
        if state.picks_best:
            return final_events(state, self._tokenizer) if state.finished else []
        return [
            TokenEvent(
                request_id=state.request.request_id,
                index=sequence.index,
                token_id=token_id,
                text=text,
                logprobs=named,
                finish_reason=output.finish_reason,
                stop_reason=output.stop_reason,
                metrics=state.metrics(),
            )
        ]

    def _take_embedding(self, sequence: Sequence, embedding: NDArray[np.float32], now: float) -> list[TokenEvent]:
        """The event that ends a prompt which has been read and pooled."""
        state = sequence.state
        if not np.isfinite(embedding).all():
            return self.end(state, FinishReason.ERROR, _no_numbers("hidden states"))
        state.embedding = embedding
        state.first_token = state.last_token = now
        sequence.output.finish_reason = FinishReason.STOP
        self._retire(sequence)
        return [
            TokenEvent(
                request_id=state.request.request_id,
                index=0,
                token_id=None,
                text="",
                finish_reason=FinishReason.STOP,
                metrics=state.metrics(),
            )
        ]

    def _commit(self, sequence: Sequence, count: int) -> None:
        """Publish ``count`` tokens that were read, less the drafts that were wrong."""
        before, prompt = sequence.num_computed, sequence.state.prompt_length
        computed = before + count
        if sequence.sampler is not None:  # others have no drafts, and no token that was not read
            computed = min(computed, len(sequence.tokens) - 1)
        self._cache.commit(sequence.pages, computed)
        if before < prompt:
            self._metrics.prompt_tokens.add(min(sequence.num_computed, prompt) - before)

    def _begin_children(self, sequence: Sequence) -> None:
        """Let the continuations begin that share the prompt of ``sequence``, once that has been read."""
        if not sequence.children or len(sequence.tokens) == sequence.state.prompt_length:
            return
        children, sequence.children = sequence.children, []
        for child in children:
            if not child.output.finished:
                self._start(child, sequence)

    def _start(self, child: Sequence, parent: Sequence) -> None:
        """Run ``child`` on the pages of ``parent``, or queue it where there is no seat or no page for it."""
        pages = None
        if self._scheduler.free_seats > 0 and parent.pages.admitted:
            pages = self._cache.fork(parent.pages, child.tokens)
        child.order = parent.order
        if pages is None:
            self._scheduler.requeue(child)
        else:
            child.pages = pages
            self._scheduler.run(child)

    def _advance_beams(self, state: RequestState, now: float) -> list[TokenEvent]:
        """Choose the beams that live on, once each of them has its candidates."""
        beams = state.beams
        if beams is None or state.finished or any(beam.candidates is None for beam in state.sequences):
            return []
        steps = beams.advance([beam.candidates or [] for beam in state.sequences])
        self._time_token(state.sequences[0], now)
        if beams.done:
            for sequence in state.sequences:
                self._retire(sequence)
            self._count_request(state)
            return final_events(state, self._tokenizer)
        state.sequences = self._survivors(state, beams, [(step.parent, step.token_id) for step in steps])
        return []

    def _survivors(self, state: RequestState, beams: BeamSearch, steps: list[tuple[int, int]]) -> list[Sequence]:
        """The sequences of the new beams: a parent goes on as its first child, further children are forked from it."""
        parents = state.sequences
        taken: set[int] = set()
        survivors: list[Sequence] = []
        for index, (place, _) in enumerate(steps):
            parent = parents[place]
            survivors.append(_sibling(parent, index, self._cache) if place in taken else parent)
            taken.add(place)
        for place, parent in enumerate(parents):
            parent.seats = 1  # the seats that the search kept free are what the new beams take
            if place not in taken:
                self._retire(parent)
        for survivor, (place, _) in zip(survivors, steps, strict=True):
            if survivor is not parents[place]:
                self._start(survivor, parents[place])
        for index, (survivor, (_, token_id)) in enumerate(zip(survivors, steps, strict=True)):
            survivor.index = index
            survivor.candidates = None
            survivor.tokens.append(token_id)
        survivors[0].seats = 1 + beams.params.beam_width - len(survivors)
        return survivors

    def _retire(self, sequence: Sequence) -> None:
        """``sequence`` has ended."""
        self._scheduler.remove(sequence)
        if self._drafting is not None:
            self._drafting.forget(sequence)
        if sequence.state.beams is None and sequence.state.finished:
            self._count_request(sequence.state)

    def _time_token(self, sequence: Sequence, now: float) -> None:
        state, metrics = sequence.state, self._metrics
        state.last_token = now
        if state.first_token is None:
            state.first_token = now
            metrics.time_to_first_token.observe(now - state.arrived)
        if sequence.last_token is not None:
            metrics.inter_token_latency.observe(now - sequence.last_token)
        sequence.last_token = now
        metrics.generation_tokens.add()

    def _count_drafts(self, proposed: int, accepted: int) -> None:
        self._metrics.drafts.add()
        self._metrics.draft_tokens.add(proposed)
        self._metrics.accepted_tokens.add(accepted)
        for position in range(accepted):
            self._metrics.accepted_per_position.add(label=str(position))

    def _count_request(self, state: RequestState) -> None:
        """Note a request that has ended, once."""
        if state.counted:
            return
        state.counted = True
        metrics, times = self._metrics, state.metrics()
        reason = state.finish_reason or state.sequences[0].output.finish_reason or FinishReason.STOP
        metrics.requests_finished.add(label=reason.value)
        metrics.request_latency.observe(time.perf_counter() - state.arrived)
        metrics.request_prompt_tokens.observe(state.prompt_length)
        if times is not None:
            metrics.queue_time.observe(times.queue_s)
            metrics.prefill_time.observe(times.prefill_s)
            metrics.inference_time.observe(times.prefill_s + times.decode_s)
        if isinstance(state.request.params, PoolingParams):
            return  # nothing was to be generated, so nothing is said of how much and how fast
        for sequence in state.sequences:
            metrics.request_generation_tokens.observe(len(sequence.tokens) - state.prompt_length)
        if times is not None:
            metrics.decode_time.observe(times.decode_s)


def _has_ended(sequence: Sequence) -> bool:
    return sequence.output.finished


def _sibling(parent: Sequence, index: int, cache: CacheManager) -> Sequence:
    """A copy of ``parent`` that has no pages yet."""
    tokens = list(parent.tokens)
    pages = cache.open(tokens, salt=parent.state.request.cache_salt)
    return Sequence(state=parent.state, index=index, tokens=tokens, max_length=parent.max_length, pages=pages)


def _no_token(sequence: Sequence) -> EngineError:
    if sequence.structure is not None:
        if sequence.structure.error is not None:
            return sequence.structure.failure()
        return StructureError(
            "no token of the vocabulary continues the text in the form that was asked for, or the logits "
            "are no numbers",
            hint="check the schema, or try a wider dtype: dtype='float32'",
        )
    return _no_numbers("logits")


def _no_numbers(what: str) -> EngineError:
    return EngineError(f"the model produced {what} that are no numbers", hint="a wider dtype may help: dtype='float32'")
