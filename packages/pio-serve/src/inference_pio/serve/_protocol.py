"""One connection: what uvicorn leaves open for ever is given a time here."""

from __future__ import annotations

import asyncio
import math
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inference_pio.serve._context import CROWDED
from inference_pio.serve._errors import ApiError, error_body
from inference_pio.serve._json import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    import uvicorn
    from uvicorn.server import ServerState

    from inference_pio.serve._settings import Bounds

BEYOND = 64
"""Connections above the bound that are taken to be told that there are too many; more are closed without a word."""
GOODBYE_S = 1.0
"""For an idle client to say that it ends an encrypted connection too: who keeps one for later does not look at it."""
LAST_READ_S = 3.0
"""The same for one that was answered just now, and may still be reading; uvicorn waits for five at the end."""
_WRITE_BUFFER = 32 * 1024
_NO_HTTP = ApiError(400, "this is no HTTP request", code="invalid_http")
_TOO_LARGE = ApiError(431, "the headers are too large", code="too_large")


def bounded_protocol(bounds: Bounds) -> type[HttpToolsProtocol]:
    """A protocol class for uvicorn that holds connections to ``bounds``.

    Headers that do not come in time, or are too large, end the connection; so does a client that leaves unread what was
    sent to it. Bodies are the business of the layers.
    """

    class BoundedProtocol(HttpToolsProtocol):
        """Uvicorn's, with a clock for headers and one for writing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's arguments, as they come
            super().__init__(*args, **kwargs)
            self.access_log = False  # uvicorn's has query strings in it; ours is written by the outermost layer
            self._head_bytes = 0
            self._head_timer: asyncio.TimerHandle | None = None
            self._write_timer: asyncio.TimerHandle | None = None
            self._goodbye_timer: asyncio.TimerHandle | None = None
            self._answered = -math.inf

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
            super().connection_made(transport)
            if len(self.connections) > bounds.connections + BEYOND:
                transport.abort()
                return
            transport.set_write_buffer_limits(high=_WRITE_BUFFER)
            bound_unacknowledged(transport, bounds.write_s)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_has_come()
            self._reader_is_back()
            if self._goodbye_timer is not None:
                self._goodbye_timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self.cycle is not None and not self.cycle.response_complete:
                self._head_has_come()
                return
            self._await_head()
            self._head_bytes += len(data)
            if self._head_bytes > bounds.header_bytes:
                self._refuse(_TOO_LARGE)

        def on_headers_complete(self) -> None:
            # The layers answer it as they do every other, which counts it and names it in the log.
            if len(self.connections) > bounds.connections or len(self.tasks) >= bounds.connections:
                self.scope["state"][CROWDED] = True
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words, in plain text
            self._refuse(_NO_HTTP)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._head_bytes = 0
            self._answered = self.loop.time()

        def shutdown(self) -> None:
            super().shutdown()
            self._bound_goodbye()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._bound_goodbye()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(bounds.write_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._reader_is_back()
            super().resume_writing()

        def _refuse(self, error: ApiError) -> None:
            """Answer what never became a request. Its path is not known, so the shape is OpenAI's."""
            if self.cycle is None or self.cycle.response_complete:
                body = encode(error_body(error))
                head = (
                    f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                )
                self.transport.write(head.encode() + body)
            self.transport.close()  # within another reply, words of this one would be part of that

        def _bound_goodbye(self) -> None:
            """Do not wait for the client's goodbye as long as for one that is answered."""
            if self.scheme == "https" and self.transport.is_closing() and self._goodbye_timer is None:
                seconds = GOODBYE_S if self.loop.time() - self._answered >= GOODBYE_S else LAST_READ_S
                self._goodbye_timer = self.loop.call_later(seconds, self.transport.abort)

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(bounds.header_s, self.transport.abort)

        def _head_has_come(self) -> None:
            self._head_bytes = 0
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _reader_is_back(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return BoundedProtocol


def protocol_maker(config: uvicorn.Config, state: ServerState) -> Callable[[], asyncio.Protocol]:
    """What makes the protocol of a connection, as uvicorn's server does it.

    Args:
        config: How requests are served.
        state: What the connections share.
    """
    loop = asyncio.get_running_loop()

    def make() -> asyncio.Protocol:
        protocol: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn calls it
            config=config, server_state=state, app_state={}, _loop=loop
        )
        return protocol

    return make


def bound_unacknowledged(transport: asyncio.Transport, seconds: float) -> None:
    """Have the system end the connection when the other side takes no data for so long (RFC 5482).

    The write buffer tells nothing of a client that stopped reading a short reply: that lies in the system's buffer.
    """
    sock = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if sock is not None and option is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
