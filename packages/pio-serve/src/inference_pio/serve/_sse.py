"""Server-sent events: frames as they come, comments while nothing does, an error frame where it goes wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference_pio.interfaces import PioError
from inference_pio.serve._context import context_of
from inference_pio.serve._endpoint import disconnected, end_task
from inference_pio.serve._errors import ApiError, as_api_error, error_body, internal_error
from inference_pio.serve._json import encode
from inference_pio.serve._outermost import log_failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def frame(value: object) -> bytes:
    """``value`` as one event."""
    return b"data: " + encode(value) + b"\n\n"


def error_frame(error: ApiError) -> bytes:
    """``error`` as one event, as OpenAI's clients expect it."""
    return frame(error_body(error))


class EventStream:
    """A reply of events.

    Args:
        frames: Encoded events. Closed when the reader goes away.
        keep_alive_s: Seconds of silence after which a comment is sent.
        end: What follows the last event, also after an error.
        describe: An error as an event.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        keep_alive_s: float,
        end: bytes = DONE,
        describe: Callable[[ApiError], bytes] = error_frame,
    ) -> None:
        self._frames = frames
        self._keep_alive_s = keep_alive_s
        self._end = end
        self._describe = describe
        self._sending = False
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, or until the reader has gone."""
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        writing = asyncio.ensure_future(self._write(send, context_of(scope).request_id))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            while not (writing.done() or gone.done()):
                silence = loop.time() - self._last_sent
                if silence >= self._keep_alive_s and not self._sending:
                    await self._send(send, KEEP_ALIVE)
                    silence = 0.0
                wait = max(self._keep_alive_s - silence, 0.05)
                await asyncio.wait({writing, gone}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            await end_task(writing)
            await end_task(gone)

    async def _write(self, send: Send, request_id: str) -> None:
        try:
            async for part in self._frames:
                await self._send(send, part)
        except ApiError as error:
            await self._send(send, self._describe(error))
        except Exception as error:  # noqa: BLE001 - the reply has begun, so this is all that can still be said
            known = as_api_error(error) if isinstance(error, PioError) else internal_error()
            if known.status >= 500:
                log_failure(request_id, error)
            await self._send(send, self._describe(known))
        await send({"type": "http.response.body", "body": self._end, "more_body": False})

    async def _send(self, send: Send, part: bytes) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": part, "more_body": True})
        self._sending = False
        self._last_sent = asyncio.get_running_loop().time()
