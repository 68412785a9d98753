"""One request to a replica over its socket: bytes out, bytes in, nothing of a reply is read but its framing.

A connection per request: on one machine it costs less than telling apart, on a connection that was kept, a replica that
has not seen a request from one that died over it. Measured against general clients (``benchmarks/bench_router.py``): a
part of a stream costs a fraction of what it costs in theirs.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

Headers = list[tuple[bytes, bytes]]

_HIGH_WATER = 256 * 1024
"""Bytes of a reply that may lie here unread before the replica is told to wait."""


class ReplicaGoneError(Exception):
    """A replica does not take a connection, or ended it before its reply was whole."""


class Reply(asyncio.Protocol):
    """A replica's reply, as it comes.

    Attributes:
        status: Of the reply; 0 before it is there.
        headers: As they came, names in lower case.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._complete = False
        self._gone = False
        self._news: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            ReplicaGoneError: They did not come.
        """
        while not self.status:
            await self._wait()

    async def parts(self) -> AsyncIterator[bytes]:
        """What there is of the body, as soon as it is there.

        Raises:
            ReplicaGoneError: It is not whole.
        """
        while True:
            if self._parts:
                part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                if self._size > _HIGH_WATER and self._transport is not None:
                    self._transport.resume_reading()
                self._size = 0
                yield part
            elif self._complete:
                return
            else:
                await self._wait()

    async def whole(self) -> bytes:
        """The body.

        Raises:
            ReplicaGoneError: It is not whole.
        """
        return b"".join([part async for part in self.parts()])

    async def _wait(self) -> None:
        if self._gone:
            raise ReplicaGoneError("the replica has ended before its reply was whole")
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # other loops' are like it, and do not derive from it

    def data_received(self, data: bytes) -> None:
        """Part of :class:`asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Part of :class:`asyncio.Protocol`."""
        self._gone = True
        self._transport = None
        self._tell()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.status = self._parser.get_status_code()
        self._tell()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._parts.append(body)
        before, self._size = self._size, self._size + len(body)
        if before <= _HIGH_WATER < self._size and self._transport is not None:
            self._transport.pause_reading()
        self._tell()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._complete = True
        self._tell()


@asynccontextmanager
async def ask(
    path: Path, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes = b""
) -> AsyncIterator[Reply]:
    """A request, and its reply; leaving it ends the connection, and with it what the replica does for it.

    Args:
        path: The replica's socket.
        method: ``"GET"`` or ``"POST"``.
        target: Path and query.
        headers: Without those of the framing.
        body: The body.

    Raises:
        ReplicaGoneError: Nobody listens there.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, reply = await loop.create_unix_connection(Reply, str(path))
    except OSError as error:
        raise ReplicaGoneError("the replica does not listen") from error
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"host: replica", b"connection: close"]
    if body or method == "POST":
        lines.append(b"content-length: %d" % len(body))
    lines += [name + b": " + value for name, value in headers]
    try:
        transport.write(b"\r\n".join([*lines, b"", body]))
        yield reply
    finally:
        transport.abort()
