"""The engine: requests in, token events out, one synchronous step at a time. Owns no thread, knows no torch."""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING

from inference_pio.cache import CacheManager
from inference_pio.core._admission import Admission, EngineLimits
from inference_pio.core._batch import lay_out
from inference_pio.core._choose import Chooser
from inference_pio.core._collect import Collector
from inference_pio.core._metrics import EngineMetrics
from inference_pio.core._outcome import request_output
from inference_pio.core._scheduler import Scheduled, Scheduler
from inference_pio.interfaces import (
    EngineError,
    FinishReason,
    HiddenStateExecutor,
    InvalidRequestError,
    PioError,
    PoolingParams,
    SamplingParams,
)

if TYPE_CHECKING:
    from inference_pio.core._batch import StepRows
    from inference_pio.core._drafting import Drafting
    from inference_pio.core._scheduler import Policy
    from inference_pio.core._sequence import RequestState
    from inference_pio.core._structure import Structure, StructureCompiler
    from inference_pio.interfaces import Executor, Request, RequestOutput, TokenEvent
    from inference_pio.processing import Tokenizer


class Engine:
    """Runs requests through an executor.

    A step is: schedule, run, sample, collect. What makes a request impossible is refused by :meth:`add`; what goes
    wrong in a step ends the requests of that step, and the engine can go on.

    Args:
        executor: Computes the model.
        tokenizer: Turns tokens into text; None leaves texts empty.
        vocab_size: Tokens that the model knows.
        eos_token_ids: Tokens that end a continuation.
        max_model_len: Tokens of prompt and continuation together.
        max_num_seqs: Sequences that run at once.
        max_step_tokens: Tokens that one step reads at most.
        max_logit_rows: Prompt positions whose log-probabilities one step computes at most for one request.
        chunked_prefill: Whether a prompt may be read in several steps.
        logprobs: Whether log-probabilities may be asked for.
        embed: Whether embeddings may be asked for; the executor must be one that hands out hidden states besides.
        prefix_caching: Whether what one request computed serves others that begin alike.
        policy: Who goes first: ``"fcfs"`` or ``"priority"``.
        max_waiting: Requests that may wait; None for no bound.
        max_overtakes: Later requests that may be admitted before one that waits; see :class:`Scheduler`.
        drafting: Speculation; None decodes token by token.

    Attributes:
        cache: Bookkeeping of the pages.
        scheduler: Who waits, who runs.
        metrics: What is counted.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
        max_num_seqs: int = 64,
        max_step_tokens: int = 2048,
        max_logit_rows: int = 128,
        chunked_prefill: bool = True,
        logprobs: bool = True,
        embed: bool = True,
        prefix_caching: bool = True,
        policy: Policy = "fcfs",
        max_waiting: int | None = None,
        max_overtakes: int = 64,
        drafting: Drafting | None = None,
    ) -> None:
        self.executor = executor
        self.tokenizer = tokenizer
        self.limits = EngineLimits(
            vocab_size=vocab_size,
            eos_token_ids=frozenset(token_id for token_id in eos_token_ids if token_id < vocab_size),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            logprobs=logprobs,
            hidden_size=executor.hidden_size if embed and isinstance(executor, HiddenStateExecutor) else None,
        )
        self.cache = CacheManager(executor.cache_groups, page_size=executor.page_size, prefix_caching=prefix_caching)
        self.scheduler = Scheduler(
            self.cache,
            max_num_seqs=max_num_seqs,
            max_step_tokens=max_step_tokens,
            max_logit_rows=max_logit_rows,
            chunked_prefill=chunked_prefill,
            policy=policy,
            max_waiting=max_waiting,
            max_overtakes=max_overtakes,
        )
        self.metrics = EngineMetrics()
        self._drafting = drafting
        self._admission = Admission(self.limits, tokenizer, self.cache)
        self._chooser = Chooser(vocab_size)
        self._collector = Collector(
            self.cache, self.scheduler, self.metrics, tokenizer, self.limits.eos_token_ids, drafting
        )
        self._requests: dict[str, RequestState] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap
        self._events: list[TokenEvent] = []  # of requests that ended without a step of their own

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished, or any event undelivered."""
        return self.scheduler.has_work or bool(self._events)

    @property
    def has_events(self) -> bool:
        """Whether the next step brings events even if it computes nothing: of requests that have ended since."""
        return bool(self._events)

    @property
    def has_room(self) -> bool:
        """Whether another request may wait."""
        bound = self.scheduler.max_waiting
        return bound is None or len(self.scheduler.waiting) < bound

    def add(self, request: Request, *, arrived: float | None = None, structure: Structure | None = None) -> None:
        """Check and queue ``request``.

        Args:
            request: What is asked for.
            arrived: When it came, in seconds of ``time.perf_counter``; None for now. Its times count from there.
            structure: Its form, where one of :meth:`structure_compiler` was compiled before.

        Raises:
            InvalidRequestError: It can never be served; the engine is as before.
            UnsupportedError: An embedding is asked for, and there are none; the engine is as before.
            DoesNotFitError: It needs more cache than there is; the engine is as before.
            QueueFullError: As many requests wait as may; the engine is as before.
        """
        if request.request_id in self._requests:
            raise InvalidRequestError(f"a request with id {request.request_id!r} is running already")
        state = self._admission.build(request, arrived=arrived, structure=structure)
        self.scheduler.add(state.sequences[0])
        self._requests[request.request_id] = state
        self._count_wishes(request)
        if request.timeout_s is not None:
            heapq.heappush(self._deadlines, (state.arrived + request.timeout_s, request.request_id))

    def structure_compiler(self) -> StructureCompiler:
        """What makes the forms of texts; may be used from any thread, so that no step waits for it.

        Raises:
            InvalidRequestError: There is no tokenizer.
        """
        return self._admission.compiler()

    def snapshot(self) -> EngineMetrics:
        """A copy of :attr:`metrics` with its gauges as they are now; may be called from any thread."""
        copy = self.metrics.copy()
        copy.requests_running.value = len(self.scheduler.running)
        copy.requests_waiting.value = len(self.scheduler.waiting)
        copy.kv_cache_usage.value = self.cache.usage
        return copy

    def step(self) -> list[TokenEvent]:
        """One step of all running sequences: an event for each token that was chosen and each request that ended.

        Raises:
            Exception: What the executor or the draft model raised. The requests of the step have ended then, each with
                an error; their events come with the next step.
        """
        self._expire()
        self._draft()
        plan = self.scheduler.schedule()
        if not plan:
            return self._without_work()
        self._move_pages()
        started = time.perf_counter()
        try:
            events = self._take_events() + self._run(plan, started)
        except Exception as error:
            self._fail(plan, error)
            raise
        self._measure(plan, time.perf_counter() - started)
        return events

    def output(self, request_id: str) -> RequestOutput:
        """The state of a request so far; the same lists as the engine's own, so read only."""
        return request_output(self._requests[request_id], self.tokenizer)

    def abort(self, request_id: str) -> None:
        """End what is unfinished of a request, give its pages back; :meth:`output` then says ``abort``."""
        state = self._requests[request_id]
        if not state.finished:
            self._collector.end(state, FinishReason.ABORT)

    def forget(self, request_id: str) -> RequestOutput:
        """Take the output of a finished request out of the engine."""
        output = self.output(request_id)
        if not output.finished:
            msg = f"request {request_id!r} is not finished"
            raise ValueError(msg)
        self._requests.pop(request_id).sequences.clear()  # they refer to it too: memory would wait for the collector
        if self._events:
            self._events = [event for event in self._events if event.request_id != request_id]
        return output

    def fail(self, error: PioError) -> list[TokenEvent]:
        """End every unfinished request with ``error``; the events of their ends, and those not delivered yet."""
        for state in self._requests.values():
            if not state.finished:
                self._events += self._collector.end(state, FinishReason.ERROR, error)
        return self._take_events()

    def close(self) -> None:
        """End the threads that compute masks. Harmless when called twice."""
        self._chooser.close()

    def _count_wishes(self, request: Request) -> None:
        params = request.params
        if isinstance(params, PoolingParams):
            return
        self.metrics.request_n.observe(params.n if isinstance(params, SamplingParams) else params.beam_width)
        if params.max_tokens is not None:
            self.metrics.request_max_tokens.observe(params.max_tokens)

    def _draft(self) -> None:
        """Propose what may follow. A proposer that fails ends those that run, or the next step would meet it again."""
        if self._drafting is None:
            return
        try:
            self._drafting.propose(self.scheduler.running)
        except Exception as error:
            self._fail([Scheduled(sequence, 0) for sequence in self.scheduler.running], error)
            raise

    def _run(self, plan: list[Scheduled], now: float) -> list[TokenEvent]:
        batch, rows = lay_out(plan, self.executor.cache_groups, self.executor.page_size)
        for sequence, _ in plan:
            if sequence.state.started is None:
                sequence.state.started = now
                sequence.state.cached_tokens = sequence.pages.num_cached
        masks = self._chooser.start_masks(rows)
        logits = self.executor.step(batch)
        chosen = self._chooser.choose(rows, logits, self.executor.sampler, masks)
        self._pool(rows)
        return self._collector.collect(plan, chosen)

    def _pool(self, rows: StepRows) -> None:
        """Hand the hidden states of the step to the prompts that are embedded."""
        if not rows.pooled:
            return
        executor = self.executor
        assert isinstance(executor, HiddenStateExecutor), "admission refuses them otherwise"
        hidden = executor.hidden_states()
        first = 0
        for sequence, count in rows.pooled:
            assert sequence.pool is not None
            sequence.pool.take(hidden[first : first + count])
            first += count

    def _move_pages(self) -> None:
        """Copy the pages that the bookkeeping has moved since the last step. Failing here, nobody's pages are sure."""
        try:
            for move in self.cache.take_moves():
                if move.kind == "copy":
                    self.executor.copy_pages(move.group, move.sources, move.targets)
                elif move.kind == "out":
                    self.executor.swap_out(move.group, move.sources, move.targets)
                else:
                    self.executor.swap_in(move.group, move.sources, move.targets)
        except Exception as error:
            placed = [one for one in self.scheduler.waiting if one.pages.swapped]
            self._fail([Scheduled(sequence, 0) for sequence in (*self.scheduler.running, *placed)], error)
            self.cache.clear()
            raise

    def _expire(self) -> None:
        now = time.perf_counter()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            state = self._requests.get(request_id)
            if state is not None and not state.finished:
                self._events += self._collector.end(state, FinishReason.TIMEOUT)

    def _fail(self, plan: list[Scheduled], error: Exception) -> None:
        """End the requests of a step that could not be computed."""
        reason = error if isinstance(error, PioError) else EngineError(f"the step failed: {_one_line(error)}")
        for sequence, _ in plan:
            if not sequence.state.finished:
                self._events += self._collector.end(sequence.state, FinishReason.ERROR, reason)

    def _without_work(self) -> list[TokenEvent]:
        if self.scheduler.has_work:
            waiting, running = len(self.scheduler.waiting), len(self.scheduler.running)
            error = EngineError(f"{waiting} sequences wait and {running} run, but none of them can go on")
            self._events = self.fail(error)
            raise error
        if not self._events:
            msg = "step() was called without work"
            raise ValueError(msg)
        return self._take_events()

    def _take_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events

    def _measure(self, plan: list[Scheduled], seconds: float) -> None:
        metrics, cache, scheduler = self.metrics, self.cache, self.scheduler
        tokens = sum(count for _, count in plan)
        metrics.step_tokens.observe(tokens)
        metrics.requests_running.value = len(scheduler.running)
        metrics.requests_waiting.value = len(scheduler.waiting)
        metrics.kv_cache_usage.value = cache.usage
        metrics.preemptions.values[""] = scheduler.num_preemptions
        metrics.prefix_queries.values[""] = cache.stats.queries
        metrics.prefix_hits.values[""] = cache.stats.hits
        if self._drafting is not None:
            self._drafting.observe_step(tokens, len(plan), seconds)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
