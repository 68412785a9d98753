"""From requests to the events of their texts; leaving it ends whatever is unfinished."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from inference_pio.interfaces import EngineError, FinishReason
from inference_pio.serve._errors import unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from inference_pio.core import AsyncTokenStream
    from inference_pio.interfaces import PositionLogprobs, Request, RequestOutput, TokenEvent
    from inference_pio.serve._call import Call
    from inference_pio.serve._models.served import ServedModel


class Generation:
    """Requests of one call that run side by side.

    Args:
        call: Whose they are; what they use up is counted against its key.
        model: What continues them.
        requests: At least one.
    """

    def __init__(self, call: Call, model: ServedModel, requests: list[Request]) -> None:
        self._call = call
        self._model = model
        self._requests = requests
        self._streams: list[AsyncTokenStream] = []

    async def __aenter__(self) -> Self:
        """Hand the requests to the engine.

        Raises:
            PioError: One of them can never be served, or the queue is full.
            ApiError: The engine has stopped.
        """
        try:
            for request in self._requests:
                self._streams.append(await self._model.engine.submit(request, wait=False))
        except EngineError as error:
            await self._close()
            raise unavailable("the engine does not take requests any more", "engine_stopped") from error
        except BaseException:  # cancellation too; it goes on up
            await self._close()
            raise
        self._call.open.prompt_tokens += sum(len(request.prompt_token_ids) for request in self._requests)
        self._call.open.on_cancel(self._abort)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def events(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        """Which request, and what became of it, as it comes.

        Raises:
            PioError: A request failed.
            ApiError: The server stopped before a text was finished, or whoever runs it cancelled the request.
        """
        seen = self._call.open
        if len(self._streams) == 1:
            async for event in self._streams[0]:
                seen.tokens += event.token_id is not None
                yield 0, event
        else:
            async for place, event in _merged(self._streams):
                seen.tokens += event.token_id is not None
                yield place, event
        for output in self.outputs():
            if any(one.finish_reason is FinishReason.ABORT for one in output.outputs):
                seen.check()
                raise unavailable("the server stopped before the answer was finished", "stopping")

    def outputs(self) -> list[RequestOutput]:
        """The whole outputs of the requests that have ended."""
        return [stream.output for stream in self._streams if stream.output is not None]

    def prompt_logprobs(self, place: int) -> list[PositionLogprobs | None]:
        """Of the prompt of one request that asked for them, once its first event has come."""
        found = self._streams[place].prompt_logprobs
        assert found is not None
        return found

    def _abort(self) -> None:
        for stream in self._streams:
            self._model.engine.abort(stream.request_id)

    async def _close(self) -> None:
        for stream in self._streams:
            await stream.aclose()
        outputs = self.outputs()
        if self._call.trace is not None:
            self._call.trace.computed(self._model.name, self._requests[0].params, outputs)
        used = 0
        for output in outputs:
            used += len(output.prompt_token_ids) + sum(len(one.token_ids) for one in output.outputs)
        self._call.server.spend(self._call.key_id, used)


async def _merged(streams: list[AsyncTokenStream]) -> AsyncIterator[tuple[int, TokenEvent]]:
    """Events of several streams in the order in which they come; the first failure ends all."""
    queue: asyncio.Queue[tuple[int, TokenEvent] | None] = asyncio.Queue()

    async def pump(place: int, stream: AsyncTokenStream) -> None:
        try:
            async for event in stream:
                queue.put_nowait((place, event))
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.ensure_future(pump(place, stream)) for place, stream in enumerate(streams)]
    try:
        open_streams = len(tasks)
        while open_streams:
            item = await queue.get()
            if item is not None:
                yield item
                continue
            open_streams -= 1
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
