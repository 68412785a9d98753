"""A small HTTP/1.1 client on asyncio's transports: bodies go to a function as they come, with the time they came at."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from inference_pio.benchmarks._serve_http_reply import HttpProtocolError, ReplyHead, ReplyParser
from inference_pio.interfaces import InvalidRequestError, PioError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

Sink: TypeAlias = Callable[[ReplyHead, bytes, float], None]
"""Called with the head of the reply, a piece of its body, and when it came (:func:`time.perf_counter`)."""


class ServerUnreachableError(PioError):
    """No connection to the server comes about, or it breaks."""


class _StaleConnectionError(ServerUnreachableError):
    """The server closed an idle connection at the moment in which it was used again."""


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """Where a server is.

    Attributes:
        scheme: ``"http"`` or ``"https"``.
        host: Name or address.
        port: Of the server.
        prefix: Path that all others are below, without the last slash; ``/v1`` is not part of it.
    """

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        """Host and port as in the header ``Host``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def parse_base_url(text: str) -> BaseUrl:
    """The parts of ``http://host:port/prefix``; a last ``/v1``, as other clients want it, may be there.

    Raises:
        InvalidRequestError: It is no such URL.
    """
    hint = "as in --base-url http://127.0.0.1:8000"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequestError(f"--base-url {text!r}: {error}", hint=hint) from error
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in {"http", "https"} or not host or not plain or not _is_printable(text):
        raise InvalidRequestError(f"--base-url {text!r} is no URL of a server", hint=hint)
    return BaseUrl(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path)


class HttpClient:
    """Sends requests to one server, over as many connections as run at once, and keeps those that are idle.

    Args:
        url: The server.
        headers: Sent with every request.
        timeout_s: Seconds after which a request is given up, from its sending to the end of its reply.
    """

    def __init__(self, url: BaseUrl, headers: Mapping[str, str], *, timeout_s: float) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"host": url.authority, **headers}.items())
        self._tls: ssl.SSLContext | None = None
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes, sink: Sink) -> ReplyHead:
        """Send a request; its reply's body goes to ``sink``, whatever the status.

        Raises:
            ServerUnreachableError: There is no connection, or it breaks.
            HttpProtocolError: The reply is none.
            TimeoutError: It takes too long.
            PioError: What ``sink`` raises.
        """
        head = f"{method} {self.url.prefix}{path} HTTP/1.1\r\n{self._head}"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n" if body else "\r\n"
        message = head.encode("latin-1") + body
        async with asyncio.timeout(self._timeout_s):
            while True:
                connection = self._idle_connection() or await self._connect()
                try:
                    reply = await connection.exchange(message, sink)
                except _StaleConnectionError:
                    continue  # nothing came of the request: send it on another connection
                if connection.is_open:
                    self._idle.append(connection)
                return reply

    async def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # lets the transports close

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        if self.url.scheme == "https" and self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self.url.host, self.url.port, ssl=self._tls
            )
        except OSError as error:
            full = error.errno == errno.EMFILE
            raise ServerUnreachableError(
                f"no connection to {self.url}: {_reason(error)}",
                hint="lower --max-concurrency, or raise ulimit -n" if full else "is the server running?",
            ) from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: ReplyParser | None = None
        self._reply: asyncio.Future[ReplyHead] | None = None
        self._sink: Sink | None = None
        self._used = False
        self._heard = False

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, message: bytes, sink: Sink) -> ReplyHead:
        """Send a request and wait for the end of its reply; whatever goes wrong closes the connection."""
        assert self._transport is not None
        self._parser, self._sink, self._heard = ReplyParser(), sink, False
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        try:
            head = await self._reply
        except BaseException:  # cancellation too, which goes on up: what comes now would be nobody's
            self._transport.abort()
            raise
        finally:
            self._parser = self._sink = self._reply = None
        self._used = True
        if not head.keeps_alive:
            self.close()
        return head

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        at = time.perf_counter()
        parser, sink, reply = self._parser, self._sink, self._reply
        if parser is None or sink is None or reply is None or reply.done():
            self.close()  # nothing was asked
            return
        self._heard = True
        try:
            for piece in parser.feed(data):
                assert parser.head is not None
                sink(parser.head, piece, at)
        except PioError as error:
            reply.set_exception(error)
            return
        if parser.done:
            assert parser.head is not None
            reply.set_result(parser.head)

    def connection_lost(self, exc: Exception | None) -> None:
        parser, reply = self._parser, self._reply
        if parser is None or reply is None or reply.done():
            return
        if self._used and not self._heard:
            reply.set_exception(_StaleConnectionError("the server closed the connection"))
        elif exc is not None:
            reply.set_exception(ServerUnreachableError(f"the connection broke: {_reason(exc)}"))
        else:
            try:
                parser.feed_eof()
            except HttpProtocolError as error:
                reply.set_exception(error)
            else:
                assert parser.head is not None
                reply.set_result(parser.head)


def _reason(error: Exception) -> str:
    """In the system's words, where it has some; asyncio's own tell the address again."""
    if not isinstance(error, OSError):
        return str(error)
    if isinstance(getattr(error, "reason", None), str):  # of TLS, whose numbers are none of the system's
        return getattr(error, "verify_message", None) or str(error)
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _is_printable(text: str) -> bool:
    return all("!" <= letter <= "~" for letter in text)
