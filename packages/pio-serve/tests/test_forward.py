"""Requests through a router to replicas that are made up: each does at its socket what a test says."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from inference_pio.serve import KeyRing
from inference_pio.serve._call import Call
from inference_pio.serve._context import RequestContext, attach
from inference_pio.serve._errors import ApiError, unavailable
from inference_pio.serve._open_requests import OpenRequest
from inference_pio.serve._router.balance import Balance
from inference_pio.serve._router.forward import Forwarded
from inference_pio.serve._router.upstream import ReplicaGoneError, ask

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DATED = b"HTTP/1.1 200 OK\r\ndate: x\r\nx-request-id: theirs\r\ncontent-type: application/json\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body, status=b"200 OK", more=b""):
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), more, body)


class Replicas:
    """Made up: what :class:`inference_pio.serve._router.replicas.Replicas` is to a request."""

    def __init__(self, folder, scripts):
        self.all = [SimpleNamespace(socket=folder / str(place)) for place in range(len(scripts))]
        self.ready = list(range(len(scripts)))
        self.credentials = (b"authorization", b"Bearer internal")
        self.seen = [[] for _ in scripts]
        self._scripts = scripts

    async def __aenter__(self):
        self._servers = [
            await asyncio.start_unix_server(self._serve(place), str(replica.socket))
            for place, replica in enumerate(self.all)
            if self._scripts[place] is not None
        ]
        return self

    async def __aexit__(self, *_):
        for server in self._servers:
            server.close()

    def _serve(self, place):
        async def serve(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            [length] = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")] or [0]
            self.seen[place].append((head, await reader.readexactly(length)))
            try:
                for step in self._scripts[place]:
                    if callable(step):
                        await step(reader, writer)
                    else:
                        writer.write(step)
                        await writer.drain()
            finally:
                writer.close()

        return serve


def forward(folder, scripts, *, body=b"{}", method="POST", path="/v1/chat/completions", headers=(), gone=None):
    """What the client is sent, and what the replicas saw."""

    async def run():
        async with Replicas(folder, scripts) as replicas:
            router = SimpleNamespace(
                replicas=replicas, balance=Balance(len(scripts)), retries=0, cut_off=0,
                server=SimpleNamespace(settings=SimpleNamespace(keys=KeyRing())),
                not_ready=lambda: unavailable("none", "no_replica"),
            )  # fmt: skip
            if not scripts:
                router.balance = Balance(1)
            request = OpenRequest(request_id="ours", key_id="somebody", path=path)
            call = Call(
                server=None, request_id="ours", key_id="somebody", body=body, path_params={}, query=b"a=b", open=request
            )
            scope = {
                "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"a=b",
                "headers": [(b"host", b"outside"), (b"authorization", b"Bearer secret"), *headers],
            }  # fmt: skip
            attach(scope, RequestContext(request_id="ours", key_id="somebody", body=body))
            sent = []
            left = asyncio.Event()

            async def receive():
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)
                if gone is not None and len(sent) == gone:
                    left.set()

            try:
                await asyncio.wait_for(Forwarded(router, call)(scope, receive, send), 10)
                error = None
            except ApiError as raised:
                error = raised
            assert [load.open for load in router.balance.loads] == [0] * len(router.balance.loads)
            return SimpleNamespace(
                sent=sent, error=error, router=router, seen=replicas.seen,
                body=b"".join(message.get("body", b"") for message in sent),
            )  # fmt: skip

    return asyncio.run(run())


def test_hands_a_request_on(tmp_path):
    """Path, query, body and headers of the client arrive, but for those of its connection and its key."""
    found = forward(
        tmp_path,
        [[whole(b"{}")]],
        body=b'{"prompt": "x"}',
        headers=[
            (b"content-type", b"application/json"),
            (b"x-api-key", b"secret"),
            (b"cookie", b"secret"),
            (b"x-pio-key-id", b"somebody-else"),
            (b"x-pio-key-label", b"somebody-else"),
            (b"transfer-encoding", b"chunked"),
            (b"traceparent", b"00-1"),
        ],
    )
    [[(head, body)]] = found.seen
    assert head.startswith(b"POST /v1/chat/completions?a=b HTTP/1.1\r\n")
    assert body == b'{"prompt": "x"}'
    assert b"secret" not in head
    assert b"outside" not in head
    assert b"somebody-else" not in head
    lines = head.split(b"\r\n")
    for line in (b"x-pio-key-id: somebody", b"x-pio-key-label: unnamed", b"x-request-id: ours", b"traceparent: 00-1",
                 b"content-type: application/json", b"authorization: Bearer internal"):  # fmt: skip
        assert lines.count(line) == 1
    assert b"transfer-encoding" not in head


def test_returns_the_reply(tmp_path):
    """Status, headers and body as they are, but for the headers that the router says itself."""
    found = forward(tmp_path, [[DATED, b"retry-after: 3\r\ncontent-length: 2\r\n\r\n{", b"}"]])
    start, body = found.sent
    assert start["status"] == 200
    assert start["headers"] == [
        (b"content-type", b"application/json"), (b"retry-after", b"3"), (b"content-length", b"2"),
    ]  # fmt: skip
    assert body == {"type": "http.response.body", "body": b"{}", "more_body": False}


@pytest.mark.parametrize("status", [b"400 Bad Request", b"429 Too Many Requests", b"503 Service Unavailable"])
def test_errors_of_a_replica_are_its_answer(tmp_path, status):
    """They come back as they are, and nobody else is asked."""
    found = forward(tmp_path, [[whole(b"no", status)], [whole(b"other")]])
    assert found.sent[0]["status"] == int(status[:3])
    assert found.body == b"no"
    assert found.router.retries == 0


def test_head_and_bodies_without_post(tmp_path):
    """A HEAD is asked as a GET, whose body whoever writes leaves out; a body never goes without its length."""
    found = forward(tmp_path, [[whole(b"{}")]], method="HEAD", body=b"", path="/v1/models")
    assert found.seen[0][0][0].startswith(b"GET /v1/models?a=b ")
    assert found.body == b"{}"
    found = forward(tmp_path, [[whole(b"{}")]], method="GET", body=b"GET / HTTP/1.1", path="/v1/models")
    assert found.seen[0][0][1] == b"GET / HTTP/1.1"


@pytest.mark.parametrize(
    "first",
    [
        None,
        [],
        [b"HTTP/1.1 200 OK\r\ncontent-le"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"],
        [b"what is this\r\n\r\n"],
        [EVENTS],
        [EVENTS + chunk(b"data: ha")],
    ],
)
def test_another_replica_answers_instead(tmp_path, first):
    """Of one that does not listen, says nothing, or ends before anything was sent to the client."""
    found = forward(tmp_path, [first, [whole(b"other")]])
    assert found.body == b"other"
    assert found.router.retries == 1
    assert [load.requests for load in found.router.balance.loads] == [1, 1]


def test_only_once(tmp_path):
    """A request that ends every replica must not end all of them."""
    found = forward(tmp_path, [[], [], [whole(b"third")]])
    assert (found.error.status, found.error.code) == (503, "replica_failed")
    assert found.sent == []
    assert found.router.retries == 1


@pytest.mark.parametrize("scripts", [[], [None]])
def test_nobody_is_there(tmp_path, scripts):
    """503: without replicas, or with one alone that has ended."""
    found = forward(tmp_path, scripts)
    assert found.error.status == 503
    assert found.sent == []


def test_events_go_on_at_once(tmp_path):
    """Each as soon as it is there: the replica waits until the client has it."""
    first = chunk(b"data: 1\n\n")

    async def pause(_reader, _writer):
        await asyncio.sleep(0.1)

    found = forward(tmp_path, [[EVENTS, first, pause, chunk(b"data: 2\n\n"), pause, b"0\r\n\r\n"]])
    assert [message.get("body") for message in found.sent[1:]] == [b"data: 1\n\n", b"data: 2\n\n", b""]


@pytest.mark.parametrize(
    ("path", "begin", "end"),
    [
        ("/v1/chat/completions", b'data: {"error":', b"data: [DONE]\n\n"),
        ("/v1/completions", b'data: {"error":', b"data: [DONE]\n\n"),
        ("/v1/responses", b'data: {"error":', b"}\n\n"),
        ("/v1/messages", b"event: error\ndata: {", b"}\n\n"),
    ],
)
def test_a_stream_whose_replica_ends(tmp_path, path, begin, end):
    """Ends with an error event in the shape of its clients, and without the event that did not come whole."""
    found = forward(tmp_path, [[EVENTS, chunk(b"data: 1\n\ndata: ha")], [whole(b"other")]], path=path)
    assert found.body.startswith(b"data: 1\n\n" + begin)
    assert b"data: ha" not in found.body
    assert found.body.endswith(end)
    assert found.sent[-1]["more_body"] is False
    assert (found.router.retries, found.router.cut_off) == (0, 1)
    event = found.body[len(b"data: 1\n\n") :].partition(b"data: ")[2].partition(b"\n")[0]
    assert "ended" in json.loads(event)["error"]["message"]


def test_events_in_pieces(tmp_path):
    """However the bytes are cut, the client gets all of them, in whole events."""
    text = b"data: 1\n\n: ping\n\nevent: x\ndata: 2\n\ndata: [DONE]\n\n"

    async def pause(_reader, _writer):
        await asyncio.sleep(0.002)

    steps = [step for byte in text for step in (chunk(bytes([byte])), pause)]
    found = forward(tmp_path, [[EVENTS, *steps, b"0\r\n\r\n"]])
    assert found.body == text
    assert all(message["body"].endswith(b"\n\n") for message in found.sent[1:-1])


def test_a_stream_without_a_whole_event(tmp_path):
    """What is left goes on as it is."""
    assert forward(tmp_path, [[EVENTS, chunk(b"data: x"), b"0\r\n\r\n"]]).body == b"data: x"


def test_a_client_that_goes_away(tmp_path):
    """Ends the connection to the replica, which so learns of it."""
    heard = []

    async def until_end(reader, _writer):
        heard.append(await reader.read())

    found = forward(tmp_path, [[EVENTS, chunk(b"data: 1\n\n"), until_end]], gone=2)
    assert heard == [b""]
    assert found.error is None


def test_a_replica_waits_for_a_slow_reader(tmp_path):
    """What lies unread here is bounded, however much the replica has to say."""

    async def run():
        written = 0

        async def flood(_reader, writer):
            nonlocal written
            for _ in range(200):
                writer.write(chunk(b"x" * 100_000))
                await writer.drain()
                written += 100_000

        async with (
            Replicas(tmp_path, [[EVENTS, flood, b"0\r\n\r\n"]]) as replicas,
            ask(replicas.all[0].socket, "GET", b"/", []) as reply,
        ):
            await reply.head()
            await asyncio.sleep(0.2)
            held = written
            read = len(await reply.whole())
        return held, read

    held, read = asyncio.run(run())
    assert held < 4_000_000
    assert read == 20_000_000


def test_nobody_listens(tmp_path):
    """Says so."""

    async def run():
        async with ask(tmp_path / "none", "GET", b"/", []):
            pass

    with pytest.raises(ReplicaGoneError, match="does not listen"):
        asyncio.run(run())
