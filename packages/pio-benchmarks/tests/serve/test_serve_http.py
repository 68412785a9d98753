"""HTTP replies in any cut, events in any cut, connections that are kept, break and go stale."""

from __future__ import annotations

import asyncio
import http.client
import io
import random

import pytest

from inference_pio.benchmarks._serve_http import BaseUrl, HttpClient, ServerUnreachableError, parse_base_url
from inference_pio.benchmarks._serve_http_reply import HttpProtocolError, ReplyParser
from inference_pio.benchmarks._serve_sse import EventReader
from inference_pio.interfaces import InvalidRequestError

REPLIES = {
    "sized": b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-A: 1\r\nx-a:  2\r\n\r\nhello\r\nabcd",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n\r\r\n2\r\n\r\n\r\n00A\r\n0123456789\r\n0\r\n\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    "informed": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno",
    "until close": b"HTTP/1.0 200 OK\r\n\r\neverything\r\n\r\nelse",
    "no reason": b"HTTP/1.1 429\r\nContent-Length: 1\r\n\r\n!",
}


class Canned:
    """A socket that has received some bytes."""

    def __init__(self, data):
        self._data = data

    def makefile(self, _mode):
        return io.BytesIO(self._data)


def read(data, cuts):
    parser = ReplyParser()
    pieces = []
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        pieces += parser.feed(data[begin:end])
    return parser, b"".join(pieces)


@pytest.mark.parametrize("name", REPLIES)
def test_replies_are_read_as_pythons_own_client_reads_them(name):
    """Whole, byte by byte, and in random cuts."""
    data = REPLIES[name]
    oracle = http.client.HTTPResponse(Canned(data))
    oracle.begin()
    body = oracle.read()
    rng = random.Random(0)  # noqa: S311 - where test data is cut
    ways = [[], list(range(1, len(data)))]
    ways += [sorted(rng.sample(range(1, len(data)), rng.randint(1, 8))) for _ in range(50)]
    for cuts in ways:
        parser, got = read(data, cuts)
        assert got == body
        assert (parser.head.status, parser.head.reason) == (oracle.status, oracle.reason)
        assert parser.head.headers == {key.lower(): ", ".join(oracle.headers.get_all(key)) for key in oracle.headers}
        assert parser.done == (name != "until close")
        parser.feed_eof()
        assert parser.done


BROKEN = [
    (b"HTTP/2 200 OK\r\n\r\n", "begins with 'HTTP/2 200 OK'"),
    (b"hello\r\n\r\n", "not with a status"),
    (b"HTTP/1.1 20x OK\r\n\r\n", "not with a status"),
    (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "has the header 'no colon'"),
    (b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n", "has the header"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "has the length '-1'"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n", "has the length '1, 1'"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "unknown transfer coding"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", "more than its reply"),
    (b"HTTP/1.1 204 No\r\n\r\nab", "more than its reply"),
    (REPLIES["chunked"] + b"x", "more than its reply"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", "has the size b'-1'"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\n", "has the size b'0x1'"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n", "has the size b''"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffff\r\n", "has the size"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n", "longer than it says"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\rb", "longer than it says"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 9000, "does not end"),
    (b"HTTP/1.1 200 OK\r\nx: " + b"1" * 70000, "head of the reply has more than 65536 bytes"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_reply_is_refused(data, message):
    """At once or in small pieces: a bad server cannot make figures."""
    with pytest.raises(HttpProtocolError, match=message):
        read(data, [])
    with pytest.raises(HttpProtocolError, match=message):
        read(data, range(1, len(data), 1 + len(data) // 2000))


@pytest.mark.parametrize("name", [name for name in REPLIES if name != "until close"])
def test_a_reply_that_is_cut_off_is_no_reply(name):
    """Wherever; but for one that ends with the connection."""
    data = REPLIES[name]
    for end in range(len(data)):
        parser = ReplyParser()
        parser.feed(data[:end])
        with pytest.raises(HttpProtocolError, match="closed the connection before its reply had ended"):
            parser.feed_eof()


STREAM = (
    b": a comment\n\nevent: x\ndata: one\nid: 3\n\n"
    b'data:two\r\n\r\ndata: a\ndata: b\n\n\n\ndata: {"t": "\xc3\xa9"}\r\rdata\n\ndata: [DONE]\n\n'
)


def test_events_in_any_cut():
    """Comments and fields but ``data`` are skipped; lines end in any of three ways."""
    expected = [b"one", b"two", b"a\nb", b'{"t": "\xc3\xa9"}', b"[DONE]"]
    rng = random.Random(1)  # noqa: S311 - where test data is cut
    for cuts in [[], list(range(1, len(STREAM))), *(sorted(rng.sample(range(1, len(STREAM)), 6)) for _ in range(60))]:
        reader = EventReader()
        found = []
        for begin, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
            found += reader.feed(STREAM[begin:end])
        assert found == expected
        assert reader.finish() == []


def test_the_last_event_may_lack_its_end():
    """As servers that close the connection leave it."""
    reader = EventReader()
    assert reader.feed(b"data: a\n\ndata: b\n") == [b"a"]
    assert reader.finish() == [b"b"]
    with pytest.raises(HttpProtocolError, match="an event of the stream has more than"):
        reader.feed(b"data: " + b"x" * (17 << 20))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("http://127.0.0.1:8000", ("http", "127.0.0.1", 8000, "")),
        ("http://h/v1/", ("http", "h", 80, "")),
        ("https://h/api/v1", ("https", "h", 443, "/api")),
        ("localhost:8000", ("http", "localhost", 8000, "")),
        ("http://[::1]:9/", ("http", "::1", 9, "")),
    ],
)
def test_urls_of_servers(text, parts):
    """With or without scheme, port and the ``/v1`` that other clients want."""
    url = parse_base_url(text)
    assert url == BaseUrl(*parts)
    assert parse_base_url(str(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://",
        "ftp://h",
        "http://h:x",
        "http://h:99999",
        "http://u:p@h",
        "http://h/?a",
        "http://h/a b",
        "http://h/\r\nx",
        "http://hé",
    ],
)
def test_what_is_no_url_of_a_server(text):
    """Neither credentials nor anything that would end up in a header."""
    with pytest.raises(InvalidRequestError, match="--base-url"):
        parse_base_url(text)


def fetch(url, *paths, timeout_s=10.0, headers=None):
    """Statuses and bodies, one after another over one client."""

    async def main():
        client = HttpClient(parse_base_url(url), headers or {}, timeout_s=timeout_s)
        found = []
        try:
            for path in paths:
                body = bytearray()
                head = await client.request("GET", path, b"", lambda _head, data, _at, body=body: body.extend(data))
                found.append((head.status, bytes(body)))
        finally:
            await client.close()
        return found

    return asyncio.run(main())


def test_connections_are_kept_while_the_server_keeps_them(serving, wire):
    """One for three requests; and another after one that says it closes."""

    def answer(asked):
        close = asked.path == "/close"
        yield wire.plain(asked.path, headers="connection: close\r\n" if close else "")
        if close:
            yield None

    server = serving(answer)
    assert fetch(server.url, "/a", "/b", "/close", "/c") == [
        (200, f'"{path}"'.encode()) for path in ("/a", "/b", "/close", "/c")
    ]
    assert server.connections == 2
    assert server.asked[0].headers["host"] == f"127.0.0.1:{server.port}"


def test_a_stale_connection_is_replaced(serving, wire):
    """A server that closes an idle connection without a word costs a connection, not a request."""

    def answer(asked):
        yield wire.plain("x")
        yield 0.05
        yield None

    server = serving(answer)

    async def main():
        client = HttpClient(parse_base_url(server.url), {}, timeout_s=10)
        for _ in range(3):
            head = await client.request("GET", "/", b"", lambda _head, _data, _at: None)
            assert head.status == 200
            await asyncio.sleep(0.05)
        await client.close()

    asyncio.run(main())
    assert len(server.asked) == 3


def test_connections_that_break_and_servers_that_hang(serving, wire):
    """Each in words of its own."""

    def answer(asked):
        if asked.path == "/cut":
            yield wire.plain("x" * 100)[:-50]
            yield None
        if asked.path == "/nothing":
            yield None
        if asked.path == "/odd":
            yield b"SSH-2.0-OpenSSH\r\n\r\n"
            yield 0.2
        yield 5.0

    server = serving(answer)
    for path in ("/cut", "/nothing"):
        with pytest.raises(HttpProtocolError, match="closed the connection before its reply had ended"):
            fetch(server.url, path)
    with pytest.raises(HttpProtocolError, match=r"the reply begins with 'SSH-2\.0-OpenSSH'"):
        fetch(server.url, "/odd")
    with pytest.raises(TimeoutError):
        fetch(server.url, "/hang", timeout_s=0.1)


def test_no_server_at_all():
    """The system's words, and what to look at."""
    with pytest.raises(
        ServerUnreachableError, match=r"no connection to http://127\.0\.0\.1:1: Connection refused"
    ) as caught:
        fetch("http://127.0.0.1:1", "/")
    assert caught.value.hint == "is the server running?"
    with pytest.raises(ServerUnreachableError, match=r"no connection to http://nowhere\.invalid:80"):
        fetch("http://nowhere.invalid", "/")


def test_tls_where_there_is_none():
    """In the words of TLS, whose error numbers mean something else to the system."""

    async def refuse(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async def main():
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        client = HttpClient(BaseUrl("https", "127.0.0.1", server.sockets[0].getsockname()[1], ""), {}, timeout_s=10)
        with pytest.raises(ServerUnreachableError, match=r"no connection to https://127\.0\.0\.1:\d+: .*SSL"):
            await client.request("GET", "/", b"", lambda _head, _data, _at: None)
        server.close()

    asyncio.run(main())


def test_cancelling_closes_the_connection(serving, wire):
    """What comes for a request that nobody waits for any more is never taken for another's."""

    def answer(asked):
        yield wire.head + wire.chunk(b"never ending")
        yield 5.0

    server = serving(answer)

    async def main():
        client = HttpClient(parse_base_url(server.url), {}, timeout_s=10)
        came = asyncio.Event()
        task = asyncio.create_task(client.request("GET", "/", b"", lambda _head, _data, _at: came.set()))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client._idle == []

    asyncio.run(main())
