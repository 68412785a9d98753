"""The engine: requests in, token events out, one synchronous step at a time. Owns no thread, knows no torch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inference_pio.core._batch import lay_out
from inference_pio.core._pages import PagePool
from inference_pio.core._sampler import SamplerState, choose, log_softmax, top_logprobs
from inference_pio.core._scheduler import Scheduler
from inference_pio.core._sequence import Sequence
from inference_pio.interfaces import (
    FinishReason,
    InvalidRequestError,
    Logprob,
    PromptTooLongError,
    RequestMetrics,
    RequestOutput,
    TokenEvent,
)
from inference_pio.processing import IncrementalDetokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.core._batch import LogitRow
    from inference_pio.core._scheduler import Scheduled
    from inference_pio.interfaces import Executor, PositionLogprobs, Request
    from inference_pio.processing import Tokenizer


class Engine:
    """Runs requests through an executor.

    Args:
        executor: Computes the model.
        tokenizer: Turns tokens into text; None leaves texts empty.
        vocab_size: Tokens that the model knows.
        eos_token_ids: Tokens that end a continuation.
        max_model_len: Tokens of prompt and continuation together.
        max_num_seqs: Sequences that run at once.
        max_step_tokens: Tokens that one step reads at most.
        max_logit_rows: Prompt positions whose log-probabilities one step computes at most.
        chunked_prefill: Whether a prompt may be read in several steps.
        logprobs: Whether log-probabilities may be asked for.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
        max_num_seqs: int = 8,
        max_step_tokens: int = 2048,
        max_logit_rows: int = 128,
        chunked_prefill: bool = True,
        logprobs: bool = True,
    ) -> None:
        self.executor = executor
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_model_len = max_model_len
        self.scheduler = Scheduler(
            PagePool(executor.num_pages, executor.page_size),
            max_num_seqs=max_num_seqs,
            max_step_tokens=max_step_tokens,
            max_logit_rows=max_logit_rows,
            chunked_prefill=chunked_prefill,
        )
        self.allows_logprobs = logprobs
        self._requests: dict[str, list[Sequence]] = {}
        self._arrived: dict[str, float] = {}

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Check and queue ``request``.

        Raises:
            InvalidRequestError: It can never be served; the engine is as before.
            DoesNotFitError: It needs more cache than there is; the engine is as before.
        """
        self._check(request)
        length = len(request.prompt_token_ids)
        room = self.max_model_len - length
        limit = room if request.params.max_tokens is None else min(room, request.params.max_tokens)
        sequences = [self._sequence(request, index, length + limit) for index in range(request.params.n)]
        for sequence in sequences:
            self.scheduler.add(sequence)
        self._requests[request.request_id] = sequences
        self._arrived[request.request_id] = time.perf_counter()

    def step(self) -> list[TokenEvent]:
        """One step of all running sequences; one event for each token that was chosen."""
        plan = self.scheduler.schedule()
        if not plan:
            msg = "step() was called without work"
            raise ValueError(msg)
        batch, rows = lay_out(plan, self.executor.page_size)
        self._mark_started(plan)
        logits = self.executor.step(batch)
        return self._collect(plan, rows, logits)

    def output(self, request_id: str) -> RequestOutput:
        """The state of a request so far; the same lists as the engine's own, so read only."""
        sequences = self._requests[request_id]
        request = sequences[0].request
        finished = all(sequence.output.finished for sequence in sequences)
        return RequestOutput(
            request_id=request_id,
            prompt=request.prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            prompt_logprobs=sequences[0].prompt_logprobs,
            outputs=[sequence.output for sequence in sequences],
            finished=finished,
            metrics=self._metrics(request_id) if finished else None,
        )

    def abort(self, request_id: str) -> None:
        """End what is unfinished of a request, give its pages back; :meth:`output` then says ``abort``."""
        for sequence in self._requests[request_id]:
            if not sequence.output.finished:
                sequence.output.finish_reason = FinishReason.ABORT
                self.scheduler.remove(sequence)

    def forget(self, request_id: str) -> RequestOutput:
        """Take the output of a finished request out of the engine."""
        output = self.output(request_id)
        if not output.finished:
            msg = f"request {request_id!r} is not finished"
            raise ValueError(msg)
        del self._requests[request_id], self._arrived[request_id]
        return output

    def _check(self, request: Request) -> None:
        params, prompt = request.params, request.prompt_token_ids
        if request.request_id in self._requests:
            raise InvalidRequestError(f"a request with id {request.request_id!r} is running already")
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens", hint="give some text or at least one token id")
        if stray := [token_id for token_id in prompt if not 0 <= token_id < self.vocab_size]:
            raise InvalidRequestError(f"token id {stray[0]} is not in the vocabulary of {self.vocab_size} tokens")
        named = {*(params.logit_bias or ()), *(params.stop_token_ids or ())}
        if out_of_vocabulary := sorted(token_id for token_id in named if token_id >= self.vocab_size):
            raise InvalidRequestError(
                f"token id {out_of_vocabulary[0]} in logit_bias or stop_token_ids is not in the vocabulary of "
                f"{self.vocab_size} tokens"
            )
        if len(prompt) >= self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens, and the context holds {self.max_model_len} with the answer",
                hint="shorten the prompt, or raise max_model_len if the model allows it",
            )
        if not self.allows_logprobs and (params.logprobs is not None or params.prompt_logprobs is not None):
            raise InvalidRequestError(
                "the model's plugin does not declare the capability 'logprobs'", hint="leave logprobs out"
            )
        if params.stop_strings and self.tokenizer is None:
            raise InvalidRequestError(
                "stop strings need a tokenizer, and this model has none", hint="use stop_token_ids"
            )

    def _sequence(self, request: Request, index: int, max_length: int) -> Sequence:
        params = request.params
        end_ids = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            end_ids |= {token_id for token_id in self.eos_token_ids if token_id < self.vocab_size}
        detokenizer = None
        if self.tokenizer is not None:
            detokenizer = IncrementalDetokenizer(
                self.tokenizer,
                stop=params.stop_strings,
                skip_special_tokens=params.skip_special_tokens,
                include_stop=params.include_stop_str_in_output,
                prompt_token_ids=request.prompt_token_ids,
            )
        return Sequence(
            request=request,
            index=index,
            tokens=list(request.prompt_token_ids),
            max_length=max_length,
            sampler=SamplerState(params, request.prompt_token_ids, index=index, end_ids=end_ids),
            detokenizer=detokenizer,
        )

    def _mark_started(self, plan: list[Scheduled]) -> None:
        now = time.perf_counter()
        for sequence, _ in plan:
            if sequence.started is None:
                sequence.started = now

    def _collect(self, plan: list[Scheduled], rows: list[LogitRow], logits: NDArray[np.float32]) -> list[TokenEvent]:
        for sequence, count in plan:
            sequence.num_computed += count
        events: list[TokenEvent] = []
        for (sequence, position), row in zip(rows, logits, strict=True):
            if position < sequence.prompt_length - 1:
                self._record_prompt(sequence, position, row)
            else:
                events.append(self._advance(sequence, row))
        return events

    def _record_prompt(self, sequence: Sequence, position: int, logits: NDArray[np.float32]) -> None:
        count = sequence.request.params.prompt_logprobs
        assert sequence.prompt_logprobs is not None
        assert count is not None
        sequence.prompt_logprobs.append(self._logprobs(logits, count, sequence.tokens[position + 1]))

    def _advance(self, sequence: Sequence, logits: NDArray[np.float32]) -> TokenEvent:
        """Choose the next token of ``sequence`` and see whether it ends there."""
        params, output = sequence.request.params, sequence.output
        token_id = choose(logits, sequence.sampler)
        sequence.sampler.record(token_id)
        sequence.tokens.append(token_id)
        output.token_ids.append(token_id)
        candidates: PositionLogprobs | None = None
        if params.logprobs is not None and output.logprobs is not None and output.cumulative_logprob is not None:
            candidates = self._logprobs(logits, params.logprobs, token_id)
            output.logprobs.append(candidates)
            output.cumulative_logprob += candidates[token_id].logprob
        text = self._finish_if_ended(sequence, token_id)
        sequence.last_token = time.perf_counter()
        if sequence.first_token is None:
            sequence.first_token = sequence.last_token
        if output.finished:
            self.scheduler.remove(sequence)
        return TokenEvent(
            request_id=sequence.request.request_id,
            index=sequence.index,
            token_id=token_id,
            text=text,
            logprobs=candidates,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
        )

    def _finish_if_ended(self, sequence: Sequence, token_id: int) -> str:
        """Set finish and stop reason if ``token_id`` ends ``sequence``; returns the text that became certain."""
        params, output, detokenizer = sequence.request.params, sequence.output, sequence.detokenizer
        stopped_by_id = token_id in (params.stop_token_ids or ())
        if stopped_by_id or (token_id in self.eos_token_ids and not params.ignore_eos):
            output.finish_reason = FinishReason.STOP
            output.stop_reason = token_id if stopped_by_id else None
        if detokenizer is None:
            text = ""
        elif output.finished:
            text = detokenizer.finish()  # the token that ends a text is not part of it
        else:
            text = detokenizer.push(token_id)
            if detokenizer.stopped_by is not None:
                output.finish_reason = FinishReason.STOP
                output.stop_reason = detokenizer.stopped_by
        if not output.finished and len(sequence.tokens) >= sequence.max_length:
            output.finish_reason = FinishReason.LENGTH
            text += detokenizer.finish() if detokenizer is not None else ""
        output.text += text
        return text

    def _logprobs(self, logits: NDArray[np.float32], count: int, chosen: int) -> PositionLogprobs:
        candidates = top_logprobs(log_softmax(logits), count, chosen)
        return {
            token_id: Logprob(logprob, rank, self._decode(token_id)) for token_id, (logprob, rank) in candidates.items()
        }

    def _decode(self, token_id: int) -> str | None:
        """Text of one token by itself, its leading space included; partial UTF-8 shows as U+FFFD."""
        if self.tokenizer is None:
            return None
        try:
            return self.tokenizer.token_bytes(token_id).decode(errors="replace")
        except InvalidRequestError:
            return None  # embeddings are often padded beyond the tokenizer's vocabulary

    def _metrics(self, request_id: str) -> RequestMetrics | None:
        sequences, arrived = self._requests[request_id], self._arrived[request_id]
        started = [sequence.started for sequence in sequences if sequence.started is not None]
        first = [sequence.first_token for sequence in sequences if sequence.first_token is not None]
        last = [sequence.last_token for sequence in sequences if sequence.last_token is not None]
        if not started or not first:
            return None  # aborted before its first token
        return RequestMetrics(
            queue_s=min(started) - arrived,
            ttft_s=min(first) - arrived,
            prefill_s=min(first) - min(started),
            decode_s=max(last) - min(first),
        )
