"""From ASGI to a handler and back: a reader that goes away ends what was begun for it."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from inference_pio.serve._call import Call
from inference_pio.serve._context import context_of
from inference_pio.serve._open_requests import OpenRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._server_state import ServerState


class Endpoint:
    """An ASGI application that calls one handler.

    Args:
        handler: Makes the reply.
        server: What all requests share.
        costs: Whether the request counts against its key and holds up the end of the server.
    """

    def __init__(
        self, handler: Callable[[Call], Coroutine[Any, Any, ASGIApp]], server: ServerState, *, costs: bool
    ) -> None:
        self._handler = handler
        self._server = server
        self._costs = costs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: What the client is told instead.
        """
        context = context_of(scope)
        call = Call(
            server=self._server,
            request_id=context.request_id,
            key_id=context.key_id,
            body=context.body,
            path_params=scope.get("path_params", {}),
            query=scope["query_string"],
            trace=context.trace,
            open=OpenRequest(request_id=context.request_id, key_id=context.key_id, path=scope["path"]),
        )
        with self._server.admitted(call.open) if self._costs else nullcontext():
            async with call.cleanup:
                await self._serve(call, scope, receive, send)

    async def _serve(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what the handler makes; if the client goes away first, the handler is cancelled and at its end.

        Raises:
            ApiError: What the handler raised, or the request was cancelled.
        """
        from inference_pio.serve._early_stream import EarlyStream  # streams know from here when readers have gone

        stream = EarlyStream(send, scope["path"], call.request_id)
        task = asyncio.ensure_future(self._handler(call))
        call.open.on_cancel(task.cancel)
        gone = asyncio.ensure_future(disconnected(receive))
        patience = self._server.settings.keep_alive_s
        try:
            while not await _first({task, gone}, patience):
                if call.streams:
                    await stream.comment()
            if not task.done():
                return
            if task.cancelled():
                call.open.check()
            reply = task.result()
        except Exception as error:  # noqa: BLE001 - raised again there, unless a stream has begun
            await stream.fail(error)
            return
        finally:
            await end_task(task)
            await end_task(gone)
        await reply(scope, receive, stream.go_on)


async def _first(tasks: set[asyncio.Future[Any]], seconds: float) -> bool:
    """Whether one of ``tasks`` is done within ``seconds``."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


async def disconnected(receive: Callable[[], Awaitable[object]]) -> None:
    """Return when the client has gone. The body must have been read."""
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return


async def end_task(task: asyncio.Future[Any]) -> None:
    """Cancel ``task`` and wait until it is over; what it raised is not asked for any more."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
