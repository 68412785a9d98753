"""The engine for asyncio: one thread steps it, coroutines hand requests in and read tokens as they come."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Self

from inference_pio.interfaces import EngineError, PioError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from inference_pio.core._engine import Engine
    from inference_pio.core._metrics import EngineMetrics
    from inference_pio.interfaces import Request, RequestOutput, TokenEvent

_LOG = logging.getLogger(__name__)


class AsyncTokenStream:
    """Tokens of one request, as they come, for one coroutine.

    Leaving its ``async with`` block or :meth:`aclose` cancels what is unfinished. What is not read waits here; there
    can never be more of it than the request's ``max_tokens``.
    """

    def __init__(self, request_id: str, loop: asyncio.AbstractEventLoop, cancel: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._loop = loop
        self._cancel = cancel
        self._events: deque[TokenEvent] = deque()
        self._output: RequestOutput | None = None
        self._news = asyncio.Event()

    async def result(self) -> RequestOutput:
        """Read to the end; the whole output. Cancelling the coroutine cancels the request.

        Raises:
            PioError: The request failed.
        """
        async with self:
            async for _ in self:
                pass
        assert self._output is not None
        return self._output

    @property
    def output(self) -> RequestOutput | None:
        """The whole output once the request has ended, however it did."""
        return self._output

    async def aclose(self) -> None:
        """Cancel what is unfinished, and wait until its pages are free. Harmless when called twice."""
        if self._output is None:
            self._cancel(self.request_id)
        while self._output is None:
            self._news.clear()
            await self._news.wait()

    def deliver(self, events: list[TokenEvent], output: RequestOutput | None) -> None:
        """Take events, and the output that ends the stream; called in the stream's own event loop."""
        self._events.extend(events)
        self._output = output
        self._news.set()

    def post(self, events: list[TokenEvent], output: RequestOutput | None) -> bool:
        """Hand over events from another thread; False if nobody can read them any more."""
        return self.call(lambda: self.deliver(events, output))

    def call(self, function: Callable[[], None]) -> bool:
        """Have ``function`` called in the stream's event loop; False if that is closed."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return False
        return True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._events:
            if self._output is not None:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        event = self._events.popleft()
        if event.error is not None:
            raise event.error
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


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
        self._waiting: deque[tuple[Request, AsyncTokenStream, asyncio.Future[AsyncTokenStream]]] = deque()
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
        """What the engine has counted since its start."""
        return self._engine.metrics

    async def submit(self, request: Request, *, wait: bool = True) -> AsyncTokenStream:
        """Hand in a request; its tokens come through the stream.

        Args:
            request: What is asked for.
            wait: Where the queue is full, wait for a place; otherwise refuse.

        Raises:
            InvalidRequestError: It can never be served.
            DoesNotFitError: It needs more cache than there is.
            QueueFullError: As many requests wait as may, and ``wait`` is False.
            EngineError: The engine has stopped or is being closed.
        """
        loop = asyncio.get_running_loop()
        stream = AsyncTokenStream(request.request_id, loop, self.abort)
        admitted: asyncio.Future[AsyncTokenStream] = loop.create_future()
        self._inbox.put(lambda: self._add(request, stream, admitted, wait=wait))
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
        self._engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(f"the engine has stopped: {self._failure}", hint="start it again")
        if self._closing:
            raise EngineError("the engine is being closed")

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

    def _add(
        self,
        request: Request,
        stream: AsyncTokenStream,
        admitted: asyncio.Future[AsyncTokenStream],
        *,
        wait: bool,
    ) -> None:
        try:
            self._check_alive()
            self._engine.add(request)
        except QueueFullError as error:
            if wait:
                self._waiting.append((request, stream, admitted))
            else:
                _answer(stream, admitted, error)
        except Exception as error:  # noqa: BLE001 - a request that is no request must not end everyone's thread
            _answer(stream, admitted, error)
        else:
            self._streams[request.request_id] = stream
            _answer(stream, admitted, None)

    def _admit_waiting(self) -> None:
        """Hand in requests that wait for a place in the queue, in their order, until it is full again."""
        while self._waiting and self._engine.has_room:
            request, stream, admitted = self._waiting.popleft()
            self._add(request, stream, admitted, wait=False)

    def _abort(self, request_id: str) -> None:
        if request_id in self._streams:
            self._engine.abort(request_id)
            self._finish(request_id, [])
            return
        for entry in [entry for entry in self._waiting if entry[0].request_id == request_id]:
            self._waiting.remove(entry)
            _answer(*entry[1:], EngineError(f"request {request_id!r} was cancelled while it waited for a place"))

    def _cancel_all(self) -> None:
        for request_id in list(self._streams):
            self._abort(request_id)
        for _, stream, admitted in self._waiting:
            _answer(stream, admitted, EngineError("the engine was closed while the request waited for a place"))
        self._waiting.clear()

    def _deliver(self, events: list[TokenEvent]) -> None:
        by_request: dict[str, list[TokenEvent]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, batch in by_request.items():
            if batch[-1].finish_reason is not None and self._engine.output(request_id).finished:
                self._finish(request_id, batch)
            elif not self._streams[request_id].post(batch, None):
                self._abort(request_id)

    def _finish(self, request_id: str, events: list[TokenEvent]) -> None:
        self._streams.pop(request_id).post(events, self._engine.forget(request_id))


def _answer(stream: AsyncTokenStream, admitted: asyncio.Future[AsyncTokenStream], error: Exception | None) -> None:
    """Resolve ``admitted`` in the loop of ``stream``."""

    def resolve() -> None:
        if admitted.done():
            return  # its coroutine was cancelled
        if error is None:
            admitted.set_result(stream)
        else:
            admitted.set_exception(error)

    stream.call(resolve)
