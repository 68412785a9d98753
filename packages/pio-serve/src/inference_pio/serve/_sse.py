"""Server-sent events: frames as they come, comments while nothing does, an error frame where it goes wrong."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from inference_pio.interfaces import PioError
from inference_pio.serve._context import context_of
from inference_pio.serve._endpoint import disconnected, end_task
from inference_pio.serve._errors import ApiError, as_api_error, error_body, internal_error
from inference_pio.serve._json import encode
from inference_pio.serve._outermost import log_failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Message, Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": ping\n\n"
_SHORTEST_PAUSE_S = 0.025
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def frame(value: object) -> bytes:
    """``value`` as one event."""
    return b"data: " + encode(value) + b"\n\n"


class TextFrames:
    """Events that differ in one text alone, encoded once: most of a stream is these, each by itself in a cold cache.

    Args:
        make: The value of an event, given its text.
    """

    def __init__(self, make: Callable[[str], object]) -> None:
        text = secrets.token_hex(16)  # stands nowhere else in it
        self._before, self._after = frame(make(text)).split(encode(text))

    def __call__(self, text: str) -> bytes:
        """What ``frame`` makes of the value with ``text``."""
        return self._before + encode(text) + self._after


def error_frame(error: ApiError) -> bytes:
    """``error`` as one event, as OpenAI's clients expect it."""
    return frame(error_body(error))


class EventStream:
    """A reply of events.

    Args:
        frames: Encoded events. Closed when the reader goes away.
        keep_alive_s: Seconds of silence at most: then a comment is sent.
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
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, or until the reader has gone."""
        await send(stream_start())
        writing = asyncio.ensure_future(self._write(send, context_of(scope).request_id))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            sent = -1
            while not (writing.done() or gone.done()):
                if sent == self._sent and not self._sending:
                    await send(_body(KEEP_ALIVE))
                sent = self._sent
                await asyncio.wait({writing, gone}, timeout=self._keep_alive_s, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            await end_task(writing)
            await end_task(gone)

    async def _write(self, send: Send, request_id: str) -> None:
        try:
            async for part in self._frames:
                self._sending = True
                await send({"type": "http.response.body", "body": part, "more_body": True})
                self._sending = False
                self._sent += 1
        except ApiError as error:
            await send(_body(self._describe(error)))
        except Exception as error:  # noqa: BLE001 - the reply has begun, so this is all that can still be said
            known = as_api_error(error) if isinstance(error, PioError) else internal_error()
            if known.status >= 500:
                log_failure(request_id, error)
            await send(_body(self._describe(known)))
        await send({"type": "http.response.body", "body": self._end, "more_body": False})


def stream_start() -> Message:
    """What a stream begins with."""
    return {"type": "http.response.start", "status": 200, "headers": list(_HEADERS)}


def _body(part: bytes) -> Message:
    return {"type": "http.response.body", "body": part, "more_body": True}
