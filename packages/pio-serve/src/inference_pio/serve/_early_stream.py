"""A stream that begins before its first event can: its model is being loaded, and the connection must seem alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.interfaces import PioError
from inference_pio.serve._anthropic.events import error_event
from inference_pio.serve._errors import ApiError, as_api_error, internal_error
from inference_pio.serve._outermost import log_failure
from inference_pio.serve._sse import DONE, KEEP_ALIVE, error_frame, stream_start

if TYPE_CHECKING:
    from starlette.types import Message, Send


class EarlyStream:
    """What a stream's client is told before its reply is there.

    Args:
        send: To the client.
        path: What it asked.
        request_id: Its id.
    """

    def __init__(self, send: Send, path: str, request_id: str) -> None:
        self._send = send
        self._path = path
        self._request_id = request_id
        self._begun = False

    async def comment(self) -> None:
        """Send a comment. From here on errors are events, for the status was told."""
        if not self._begun:
            self._begun = True
            await self._send(stream_start())
        await self._send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def fail(self, error: Exception) -> None:
        """End with ``error``.

        Raises:
            Exception: ``error``, where nothing was sent yet, so that it can be a reply.
        """
        if not self._begun:
            raise error
        known = error if isinstance(error, ApiError) else None
        if known is None:
            known = as_api_error(error) if isinstance(error, PioError) else internal_error()
            if known.status >= 500:
                log_failure(self._request_id, error)
        words = last_words(self._path, known, self._request_id)
        await self._send({"type": "http.response.body", "body": words, "more_body": False})

    async def go_on(self, message: Message) -> None:
        """Send on a message of the reply: all but its start, if that was sent."""
        if not (self._begun and message["type"] == "http.response.start"):
            await self._send(message)


def last_words(path: str, error: ApiError, request_id: str) -> bytes:
    """``error`` as the end of a stream."""
    match path:
        case "/v1/messages":
            return error_event(error, request_id)
        case "/v1/responses":
            return error_frame(error)
    return error_frame(error) + DONE
