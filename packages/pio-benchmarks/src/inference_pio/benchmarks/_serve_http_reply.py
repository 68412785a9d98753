"""HTTP/1.1 replies, piece by piece as bytes come in (RFC 9112); no input or output of its own.

Written for streams of very many small chunks, of which each should cost this side as little as can be: what general
libraries take is measured by ``benchmarks/bench_serve_client.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEAD_BYTES = 64 << 10
MAX_LINE_BYTES = 4 << 10
"""Of the line before a chunk, which holds its size."""

_NO_BODY = frozenset({204, 304})


class HttpProtocolError(PioError):
    """A server that does not speak HTTP/1.1 as it should."""


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """Status line and headers.

    Attributes:
        status: Such as 200.
        reason: What the server calls it; may be empty.
        headers: By lower-case name; those given several times joined by commas.
        keeps_alive: Whether the connection can be used again once the body has ended.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    keeps_alive: bool


class ReplyParser:
    """Reads one reply.

    Attributes:
        head: Status and headers, once they are there.
        done: Whether the reply has ended.
    """

    def __init__(self) -> None:
        self.head: ReplyHead | None = None
        self.done = False
        self._rest = b""
        self._framing: Literal["chunked", "sized", "until close"] = "sized"
        self._left = 0  # bytes of the body, or of the present chunk with the line end behind it
        self._in_trailer = False

    def feed(self, data: bytes) -> list[bytes]:
        """Read ``data``; the pieces of the body in it.

        Raises:
            HttpProtocolError: It is no reply, or more than the reply.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self.head is None:
            data = self._read_head(data)
            if self.head is None:
                return []
        if self.done:
            if data:
                raise HttpProtocolError("the server sent more than its reply")
            return []
        if self._framing == "chunked":
            return self._read_chunks(data)
        if self._framing == "sized":
            if len(data) > self._left:
                raise HttpProtocolError("the server sent more than its reply")
            self._left -= len(data)
            self.done = self._left == 0
        return [data] if data else []

    def feed_eof(self) -> None:
        """The server closed the connection.

        Raises:
            HttpProtocolError: In the middle of the reply.
        """
        if self.done:
            return
        if self.head is None or self._framing != "until close":
            raise HttpProtocolError("the server closed the connection before its reply had ended")
        self.done = True

    def _read_head(self, data: bytes) -> bytes:
        """Take the head off ``data``; informational replies (1xx) before it are skipped."""
        while self.head is None:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD_BYTES:
                    raise HttpProtocolError(f"the head of the reply has more than {MAX_HEAD_BYTES} bytes")
                self._rest = data
                return b""
            head = parse_head(data[:end])
            data = data[end + 4 :]
            if head.status >= 200:
                self._begin_body(head)
        return data

    def _begin_body(self, head: ReplyHead) -> None:
        self.head = head
        coding = head.headers.get("transfer-encoding", "").strip().lower()
        length = head.headers.get("content-length")
        if head.status in _NO_BODY:
            self.done = True
        elif coding == "chunked":
            self._framing = "chunked"
        elif coding:
            raise HttpProtocolError(f"the reply has the unknown transfer coding {coding[:40]!r}")
        elif length is None:
            self._framing = "until close"
        elif length.isascii() and length.isdigit() and len(length) <= 15:
            self._left = int(length)
            self.done = self._left == 0
        else:
            raise HttpProtocolError(f"the reply has the length {length[:40]!r}")

    def _read_chunks(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        place = 0
        while not self.done:
            if self._left:
                place = self._read_chunk(data, place, pieces)
                if self._left:
                    return pieces
            end = data.find(b"\r\n", place)
            if end < 0:
                if len(data) - place > MAX_LINE_BYTES:
                    raise HttpProtocolError("the size of a chunk does not end")
                self._rest = data[place:]
                return pieces
            line, place = data[place:end], end + 2
            if self._in_trailer:
                self.done = not line
            else:
                size = _chunk_size(line)
                self._in_trailer = size == 0
                self._left = size + 2 if size else 0
        if place < len(data):
            raise HttpProtocolError("the server sent more than its reply")
        return pieces

    def _read_chunk(self, data: bytes, place: int, pieces: list[bytes]) -> int:
        """Take what is there of the present chunk, without the line end that is counted with it."""
        end = min(place + self._left, len(data))
        taken = end - place
        body = min(taken, max(self._left - 2, 0))
        if body:
            pieces.append(data[place : place + body])
        tail = data[place + body : end]
        expected = b"\r\n"[2 - min(self._left - body, 2) :]
        if not expected.startswith(tail):
            raise HttpProtocolError("a chunk is longer than it says")
        self._left -= taken
        return end


def parse_head(data: bytes) -> ReplyHead:
    """Status line and headers, without the empty line behind them.

    Raises:
        HttpProtocolError: They are not those of HTTP/1.1.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status, _, reason = rest.partition(" ")
    if version not in {"HTTP/1.1", "HTTP/1.0"} or len(status) != 3 or not (status.isascii() and status.isdigit()):
        raise HttpProtocolError(f"the reply begins with {first[:60]!r}, not with a status of HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise HttpProtocolError(f"the reply has the header {line[:60]!r}")
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    connection = headers.get("connection", "").lower()
    framed = "content-length" in headers or "transfer-encoding" in headers or int(status) in _NO_BODY
    keeps = framed and (connection != "close" if version == "HTTP/1.1" else connection == "keep-alive")
    return ReplyHead(int(status), reason, headers, keeps)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not 0 < len(digits) <= 8 or digits.strip(b"0123456789abcdefABCDEF"):
        raise HttpProtocolError(f"a chunk has the size {line[:40]!r}")
    return int(digits, 16)
