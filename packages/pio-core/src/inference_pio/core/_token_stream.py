"""What one coroutine reads of one request, while the engine runs in another thread."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self

from inference_pio.core._stamps import RequestStamps

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType

    from inference_pio.interfaces import PositionLogprobs, RequestMetrics, RequestOutput, TokenEvent


class Delivery(NamedTuple):
    """What a step has for one stream.

    Attributes:
        stream: Whom it is for.
        events: What happened, in order.
        output: What ends the stream, if this does.
        prompt_logprobs: Of the prompt, if they are known now.
    """

    stream: AsyncTokenStream
    events: list[TokenEvent]
    output: RequestOutput | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None


class AsyncTokenStream:
    """Tokens of one request, as they come, for one coroutine; of one that embeds, the event that it is done.

    Leaving its ``async with`` block or :meth:`aclose` cancels what is unfinished. What is not read waits here; there
    can never be more of it than the request's ``max_tokens``.

    Args:
        request_id: Of the request.
        arrived: When it was handed in, in seconds of ``time.perf_counter``.
        loop: Where the stream is read.
        cancel: Called with the id to cancel the request.

    Attributes:
        request_id: Of the request.
        loop: Where the stream is read.
        prompt_logprobs: Per position of the prompt, the candidates asked for, with the first event at the latest; None
            before, and where they were not asked for.
    """

    def __init__(
        self, request_id: str, arrived: float, loop: asyncio.AbstractEventLoop, cancel: Callable[[str], None]
    ) -> None:
        self.request_id = request_id
        self.loop = loop
        self.prompt_logprobs: list[PositionLogprobs | None] | None = None
        self._arrived = arrived
        self._cancel = cancel
        self._events: deque[TokenEvent] = deque()
        self._metrics: RequestMetrics | None = None
        self._output: RequestOutput | None = None
        self._waiter: asyncio.Future[None] | None = None

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

    @property
    def stamps(self) -> RequestStamps:
        """When the request arrived, and what has come of it so far: events that wait to be read included."""
        return RequestStamps.at(self._arrived, self._metrics)

    async def aclose(self) -> None:
        """Cancel what is unfinished, and wait until its pages are free. Harmless when called twice."""
        if self._output is None:
            self._cancel(self.request_id)
        while self._output is None:
            await self._news()

    def deliver(self, delivery: Delivery) -> None:
        """Take what a step had for the stream; called in the stream's own event loop."""
        self._events.extend(delivery.events)
        if delivery.events:
            self._metrics = delivery.events[-1].metrics
        if delivery.output is not None:
            self._output = delivery.output
        if delivery.prompt_logprobs is not None:
            self.prompt_logprobs = delivery.prompt_logprobs
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _news(self) -> None:
        """Wait until something is delivered."""
        self._waiter = self.loop.create_future()
        await self._waiter

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._events:
            if self._output is not None:
                raise StopAsyncIteration
            await self._news()
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
