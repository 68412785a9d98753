"""The engine for asyncio: one thread steps it, coroutines hand requests in and read tokens as they come."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from inference_pio.core._token_stream import AsyncTokenStream, Delivery
from inference_pio.interfaces import EngineError, InvalidRequestError, PioError, QueueFullError, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType

    from inference_pio.core._engine import Engine
    from inference_pio.core._metrics import EngineMetrics
    from inference_pio.core._structure import Structure
    from inference_pio.interfaces import PositionLogprobs, Request, TokenEvent

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

COMPILE_S = 2.0
"""Seconds that the form of a request may take to compile."""
_COMPILING_THREADS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Entrant:
    """A request on its way into the engine.

    Attributes:
        request: What is asked for.
        structure: Its form, if it has one.
        stream: Where its tokens go.
        arrived: When it was handed in.
        admitted: Where its coroutine waits.
    """

    request: Request
    structure: Structure | None
    stream: AsyncTokenStream
    arrived: float
    admitted: asyncio.Future[AsyncTokenStream]

    def answer(self, error: Exception | None) -> None:
        """Let the coroutine go on; called from the engine's thread."""
        _call(self.stream.loop, lambda: self._resolve(error))

    def _resolve(self, error: Exception | None) -> None:
        if self.admitted.done():
            return  # its coroutine was cancelled
        if error is None:
            self.admitted.set_result(self.stream)
        else:
            self.admitted.set_exception(error)


class AsyncEngine:
    """Owns an engine and the one thread that runs it.

    Args:
        engine: From here on only this object's thread may use it.
        on_failure: What a step that raises means: its requests fail in any case; then ``"continue"`` with the others,
            or ``"stop"``: all requests fail, and new ones are refused.
    """

    def __init__(self, engine: Engine, *, on_failure: Literal["continue", "stop"] = "continue") -> None:
        self._engine = engine
        self._stops_on_failure = on_failure == "stop"
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._streams: dict[str, AsyncTokenStream] = {}
        self._waiting: deque[_Entrant] = deque()
        self._owed_prompts: set[str] = set()  # requests whose prompts' log-probabilities were not delivered yet
        self._compilers: ThreadPoolExecutor | None = None
        self._closing = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="pio-engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """What stopped the engine, if anything did."""
        return self._failure

    @property
    def metrics(self) -> EngineMetrics:
        """What the engine has counted since its start; changes while it is read. :meth:`snapshot` does not."""
        return self._engine.metrics

    def snapshot(self) -> EngineMetrics:
        """A copy of :attr:`metrics` with its gauges as they are now; may be called from any thread, and waits for none.

        Requests that wait for a place in the queue count as waiting.
        """
        copy = self._engine.snapshot()
        copy.requests_waiting.value += len(self._waiting)
        return copy

    async def ping(self, *, timeout_s: float = 10.0) -> float:
        """Ask the engine's thread for a sign of life; it answers between two steps. Returns the seconds that it took.

        Raises:
            EngineError: It has stopped, is being closed, or does not answer in time.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        started = time.perf_counter()

        def answer() -> None:
            _call(loop, lambda: None if answered.done() else answered.set_result(None))

        self._inbox.put(answer)
        self._check_alive()
        try:
            await asyncio.wait_for(answered, timeout_s)
        except TimeoutError as error:
            self._check_alive()
            raise EngineError(f"the engine has not answered within {timeout_s:g} s") from error
        return time.perf_counter() - started

    async def submit(self, request: Request, *, wait: bool = True) -> AsyncTokenStream:
        """Hand in a request; its tokens come through the stream.

        A form that it asks for is compiled beforehand in another thread, where neither the event loop nor the steps of
        other requests wait for it.

        Args:
            request: What is asked for.
            wait: Where the queue is full, wait for a place; otherwise refuse.

        Raises:
            InvalidRequestError: It can never be served; among the reasons, a form that takes more than 2 s to compile.
            UnsupportedError: An embedding is asked for, and there are none.
            DoesNotFitError: It needs more cache than there is.
            QueueFullError: As many requests wait as may, and ``wait`` is False; or forms of others hold its own up.
            EngineError: The engine has stopped or is being closed.
        """
        arrived = time.perf_counter()
        loop = asyncio.get_running_loop()
        structure = await self._compile(request)
        stream = AsyncTokenStream(request.request_id, arrived, loop, self.abort)
        admitted: asyncio.Future[AsyncTokenStream] = loop.create_future()
        entrant = _Entrant(request, structure, stream, arrived, admitted)
        self._inbox.put(lambda: self._add(entrant, wait=wait))
        try:
            self._check_alive()  # after the put: whoever stops the engine empties the inbox
        except EngineError:
            admitted.cancel()
            raise
        try:
            return await admitted
        except asyncio.CancelledError:
            self.abort(request.request_id)
            raise

    def abort(self, request_id: str) -> None:
        """Cancel a request; harmless where it has ended. May be called from any thread."""
        self._inbox.put(lambda: self._abort(request_id))

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Refuse new requests, let those that are there go on for ``drain_s`` seconds, cancel the rest, end the thread.

        Harmless when called twice.
        """
        self._closing = True
        deadline = time.monotonic() + drain_s
        self._inbox.put(lambda: None)  # wakes the thread
        while self._thread.is_alive() and self._streams and time.monotonic() < deadline:
            await asyncio.sleep(min(0.01, drain_s))
        await asyncio.to_thread(self.shutdown)

    def shutdown(self) -> None:
        """Cancel everything and end the thread, for callers without an event loop. Harmless when called twice."""
        self._closing = True
        self._inbox.put(self._cancel_all)
        self._thread.join()
        self._inbox = SimpleQueue()  # what came too late refers to this object, and would keep weights in memory
        if self._compilers is not None:
            self._compilers.shutdown(
                wait=False
            )  # who waits for a form hears that the engine is closed, once it is made
        self._engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _compile(self, request: Request) -> Structure | None:
        """The form of a request, if it has one."""
        params = request.params
        if not isinstance(params, SamplingParams) or params.structured_outputs is None:
            return None
        self._check_alive()
        compiler = self._engine.structure_compiler()
        await asyncio.wrap_future(self._beside(compiler.vocabulary))  # once, and no fault of the form's
        compiled = self._beside(partial(compiler.compile, params.structured_outputs))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(compiled), COMPILE_S)
        except TimeoutError as error:
            if compiled.cancelled():
                raise QueueFullError(
                    "the forms of other requests are still being compiled", hint="try again later"
                ) from error
            raise InvalidRequestError(
                f"the form of structured_outputs takes more than {COMPILE_S:g} s to compile", hint="simplify it"
            ) from error

    def _beside(self, function: Callable[[], T]) -> Future[T]:
        """Have ``function`` called in a thread for forms."""
        if self._compilers is None:
            self._compilers = ThreadPoolExecutor(_COMPILING_THREADS, thread_name_prefix="pio-forms")
        try:
            return self._compilers.submit(function)
        except RuntimeError as error:  # closed since
            raise EngineError("the engine is being closed") from error

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(f"the engine has stopped: {self._failure}", hint="start it again")
        if self._closing:
            raise EngineError("the engine is being closed")
        if not self._thread.is_alive():
            raise EngineError("the engine's thread has ended", hint="start it again")

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        engine = self._engine
        while not (self._closing and not self._streams and not self._waiting):
            if not engine.has_work:
                self._inbox.get()()
            while not self._inbox.empty():
                self._inbox.get()()
            if engine.has_work:
                try:
                    self._deliver(engine.step())
                except Exception as error:  # noqa: BLE001 - whatever a model raises, the thread must answer for it
                    self._step_failed(error)
            self._admit_waiting()
        while not self._inbox.empty():
            self._inbox.get()()

    def _step_failed(self, error: Exception) -> None:
        _LOG.exception("a step of the engine failed")
        # An error that ended no request would come again with every step.
        if self._stops_on_failure or not self._engine.has_events:
            self._failure = error
            reason = error if isinstance(error, PioError) else EngineError(f"the engine has stopped: {error}")
            self._deliver(self._engine.fail(reason))
            self._cancel_all()
            self._closing = True

    def _add(self, entrant: _Entrant, *, wait: bool) -> None:
        request = entrant.request
        try:
            self._check_alive()
            self._engine.add(request, arrived=entrant.arrived, structure=entrant.structure)
        except QueueFullError as error:
            if wait:
                self._waiting.append(entrant)
            else:
                entrant.answer(error)
        except Exception as error:  # noqa: BLE001 - a request that is no request must not end everyone's thread
            entrant.answer(error)
        else:
            self._streams[request.request_id] = entrant.stream
            if isinstance(request.params, SamplingParams) and request.params.prompt_logprobs is not None:
                self._owed_prompts.add(request.request_id)
            entrant.answer(None)

    def _admit_waiting(self) -> None:
        """Hand in requests that wait for a place in the queue, in their order, until it is full again."""
        while self._waiting and self._engine.has_room:
            self._add(self._waiting.popleft(), wait=False)

    def _abort(self, request_id: str) -> None:
        if request_id in self._streams:
            self._engine.abort(request_id)
            delivery = self._finish(request_id, [])
            _call(delivery.stream.loop, partial(_hand_over, [delivery]))
            return
        for entrant in [entrant for entrant in self._waiting if entrant.request.request_id == request_id]:
            self._waiting.remove(entrant)
            entrant.answer(EngineError(f"request {request_id!r} was cancelled while it waited for a place"))

    def _cancel_all(self) -> None:
        for request_id in list(self._streams):
            self._abort(request_id)
        for entrant in self._waiting:
            entrant.answer(EngineError("the engine was closed while the request waited for a place"))
        self._waiting.clear()

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Hand a step's events over, all of a loop's at once: waking it costs more than what it is woken for."""
        by_request: dict[str, list[TokenEvent]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        for request_id, batch in by_request.items():
            if batch[-1].finish_reason is not None and self._engine.output(request_id).finished:
                delivery = self._finish(request_id, batch)
            else:
                delivery = Delivery(self._streams[request_id], batch, None, self._prompt_logprobs(request_id))
            by_loop.setdefault(delivery.stream.loop, []).append(delivery)
        for loop, deliveries in by_loop.items():
            if not _call(loop, partial(_hand_over, deliveries)):
                for delivery in deliveries:
                    self._abort(delivery.stream.request_id)  # nobody can read it any more

    def _finish(self, request_id: str, events: list[TokenEvent]) -> Delivery:
        stream = self._streams.pop(request_id)
        self._owed_prompts.discard(request_id)
        output = self._engine.forget(request_id)
        return Delivery(stream, events, output, output.prompt_logprobs)

    def _prompt_logprobs(self, request_id: str) -> list[PositionLogprobs | None] | None:
        """Of a prompt that has just been read, once."""
        if request_id not in self._owed_prompts:
            return None
        self._owed_prompts.remove(request_id)
        return self._engine.output(request_id).prompt_logprobs


def _hand_over(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        delivery.stream.deliver(delivery)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> bool:
    """Have ``function`` called in ``loop``, from another thread; False if that is closed."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        return False
    return True
