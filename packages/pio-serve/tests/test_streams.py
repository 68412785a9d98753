"""Streams on the wire, byte by byte, and what becomes of them when someone goes away."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import pytest

from inference_pio.interfaces import EngineError, QueueFullError
from inference_pio.serve import KeyRing

CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
SHORT = {**LONG, "max_tokens": 3, "ignore_eos": False}


def open_stream(running, body, path=CHAT, key=True):
    """A connection with the request sent, and its reply, unread."""
    connection = http.client.HTTPConnection(running.host, running.port, timeout=30)
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {running.key}"
    connection.request("POST", path, json.dumps({**body, "stream": True}), headers)
    return connection, connection.getresponse()


def hang_up(connection, reply):
    """Close the socket itself, which both of them hold open."""
    if connection.sock is not None:
        connection.sock.shutdown(socket.SHUT_RDWR)
    reply.close()
    connection.close()


def frames(raw):
    """Events of a stream; each ends with an empty line."""
    assert raw.endswith(b"\n\n")
    return raw[:-2].split(b"\n\n")


def wait_until_running(running, count=1, seconds=10):
    """That many sequences run."""
    deadline = time.monotonic() + seconds
    while len(running.engine.scheduler.running) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_framing(served, path):
    """One line of data per event, an empty line after each, and [DONE] at the end."""
    body = SHORT if path == CHAT else {"prompt": "a", "max_tokens": 3}
    connection, reply = open_stream(served, body, path)
    assert reply.status == 200
    assert reply.getheader("content-type") == "text/event-stream; charset=utf-8"
    assert reply.getheader("cache-control") == "no-store"
    assert reply.getheader("x-request-id")
    events = frames(reply.read())
    connection.close()
    assert events[-1] == b"data: [DONE]"
    for event in events[:-1]:
        assert event.startswith(b"data: {")
        assert b"\n" not in event
        assert "error" not in json.loads(event[6:])


@pytest.mark.parametrize(
    "text", ["", " word", 'a "quoted" \\ one', "line\r\n\x00\u2028", "\u00fc\u4e2d\U0001f600", "data: [DONE]\n\n"]
)
def test_frame_of_a_text_is_the_frame_of_its_value(text):
    """What is encoded once and what is encoded each time are the same bytes."""
    from inference_pio.serve._sse import TextFrames, frame

    def make(text):
        return {"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "logprobs": None}], "usage": None}

    assert TextFrames(make)(text) == frame(make(text))


@pytest.mark.parametrize("with_usage", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_all_pieces_of_a_text_have_the_same_fields(served, path, with_usage):
    """The first, which is encoded whole, those after it, which are not, and those beside log-probabilities."""
    body = {"max_tokens": 6, "ignore_eos": True, "temperature": 0, "stream_options": {"include_usage": with_usage}}
    body |= {"messages": LONG["messages"], "logprobs": True} if path == CHAT else {"prompt": "a", "logprobs": 0}
    pieces = []
    for more in ({}, {"logprobs": None}):
        connection, reply = open_stream(served, {**body, **more}, path)
        assert reply.status == 200
        found = [json.loads(event[6:]) for event in frames(reply.read())[:-1]]
        connection.close()
        texts = [piece for piece in found if piece["choices"] and not piece["choices"][0]["finish_reason"]]
        assert len(texts) >= 5
        pieces.append(texts)
    slow, quick = pieces

    def text(piece):
        choice = piece["choices"][0]
        return choice["delta"].get("content", "") if path == CHAT else choice["text"]

    assert "".join(map(text, slow)) == "".join(map(text, quick))
    shapes = {json.dumps({**piece, "id": 0, "created": 0, "choices": [sorted(piece["choices"][0])]}) for piece in quick}
    shapes |= {json.dumps({**piece, "id": 0, "created": 0, "choices": [sorted(piece["choices"][0])]}) for piece in slow}
    assert len(shapes) == 1
    assert len({piece["id"] for piece in quick}) == 1


def test_comment_while_nothing_comes(start_server):
    """A long prompt's silence is filled with comments, which are no events."""
    running = start_server(keep_alive_s=0.05)
    body = {**SHORT, "messages": [{"role": "user", "content": "word " * 1800}]}
    connection, reply = open_stream(running, body, key=False)
    events = frames(reply.read())
    connection.close()
    assert b": ping" in events
    assert events[-1] == b"data: [DONE]"


def test_reader_that_goes_away_cancels(served):
    """Its pages are free again long before its text would have ended."""
    connection, reply = open_stream(served, {**LONG, "n": 4})
    for _ in range(8):
        reply.readline()
    wait_until_running(served)
    hang_up(connection, reply)
    served.wait_until_idle(5)


def test_client_that_goes_away_cancels_without_stream(served):
    """The same where nothing was to come before the end."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {served.key}"}
    for path, body in (
        (CHAT, LONG),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1500, "ignore_eos": True}),
    ):
        connection.request("POST", path, json.dumps(body), headers)
        wait_until_running(served)
        connection.close()
        served.wait_until_idle(5)


def test_request_ends_within_its_time(start_server):
    """With what it has, as if it had reached its length."""
    from inference_pio.serve import Bounds

    running = start_server(bounds=Bounds(request_s=0.5))
    started = time.monotonic()
    reply = running.chat("Count.", max_tokens=2000, ignore_eos=True)
    assert time.monotonic() - started < 5
    assert reply["choices"][0]["finish_reason"] == "length"
    assert 0 < reply["usage"]["completion_tokens"] < 2000


def test_failing_step_ends_the_stream_with_an_error(start_server, monkeypatch):
    """An error event, then [DONE]; nothing of the reason but in the log; the next request is served."""
    running = start_server()
    connection, reply = open_stream(running, LONG, key=False)
    for _ in range(6):
        reply.readline()
    executor = running.engine.executor
    real = executor.step
    planted = iter([RuntimeError("planted at /some/path, object at 0x7f00")])

    def step(batch):
        for error in planted:
            raise error
        return real(batch)

    monkeypatch.setattr(executor, "step", step)
    events = frames(reply.read())
    connection.close()
    assert events[-1] == b"data: [DONE]"
    error = json.loads(events[-2][6:])["error"]
    assert error["type"] == "server_error"
    assert "planted" not in error["message"]
    assert running.chat()["choices"][0]["message"]["content"]


def test_openai_client_raises_the_error_of_a_stream(start_server, monkeypatch):
    """Its own exception, with our message."""
    import openai

    running = start_server()
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="smollm2-135m-instruct", stream=True, messages=LONG["messages"])
        next(iter(stream))
        monkeypatch.setattr(running.engine.executor, "step", lambda _: 1 / 0)
        with pytest.raises(openai.APIError, match="the engine failed"):
            for _ in stream:
                pass


def test_dead_engine_answers_every_open_request(start_server):
    """Streams get an error event, others a 503; none hangs."""
    running = start_server()
    connection, reply = open_stream(running, LONG, key=False)
    got = []
    whole = threading.Thread(target=lambda: got.append(running.post(CHAT, LONG, key=None)))
    whole.start()
    wait_until_running(running, 2)
    running.model.engine.shutdown()
    events = frames(reply.read())
    connection.close()
    whole.join(10)
    assert events[-1] == b"data: [DONE]"
    assert json.loads(events[-2][6:])["error"]["type"] == "server_error"
    [(status, headers, answer)] = got
    assert status == 503
    assert "retry-after" in headers
    assert answer["error"]["type"] == "server_error"
    assert running.post(CHAT, SHORT, key=None)[0] == 503


def test_full_queue_is_429(start_server):
    """With Retry-After; every request of a flood is answered, and the server serves on."""
    running = start_server(max_waiting=2)
    connections = []
    for _ in range(8):
        connections.append(open_stream(running, LONG, key=False))
        assert connections[-1][1].status == 200
        wait_until_running(running, len(connections))
    statuses = []

    def flood():
        statuses.append(running.post(CHAT, SHORT, key=None)[:2])

    threads = [threading.Thread(target=flood) for _ in range(12)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while sum(status == 429 for status, _ in statuses) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for connection, reply in connections:
        hang_up(connection, reply)
    for thread in threads:
        thread.join(20)
    assert sorted({status for status, _ in statuses}) == [200, 429]
    assert all(int(headers["retry-after"]) >= 1 for status, headers in statuses if status == 429)
    running.wait_until_idle()


def test_key_has_its_own_bound(start_server):
    """One key cannot take the places of another."""
    running = start_server(keys=KeyRing([first := "first-key-1", second := "second-key-2"]), max_concurrent_per_key=1)
    running.key = first
    connection, reply = open_stream(running, LONG)
    status, headers, answer = running.post(CHAT, SHORT, key=first)
    assert status == 429
    assert answer["error"]["code"] == "too_many_requests"
    assert int(headers["retry-after"]) >= 1
    assert running.post(CHAT, SHORT, key=second)[0] == 200
    hang_up(connection, reply)
    running.wait_until_idle()
    assert running.post(CHAT, SHORT, key=first)[0] == 200


def test_key_that_floods_with_tokens_waits(start_server):
    """What it used counts, and the wait is said."""
    running = start_server(keys=KeyRing([first := "first-key-1", second := "second-key-2"]), tokens_per_minute=60)
    body = {"prompt": "word " * 100, "max_tokens": 5}
    assert running.post("/v1/completions", body, key=first)[0] == 200
    status, headers, answer = running.post("/v1/completions", body, key=first)
    assert status == 429
    assert answer["error"]["code"] == "tokens_per_minute"
    assert 20 < int(headers["retry-after"]) < 90
    assert running.post("/v1/completions", body, key=second)[0] == 200


def test_caches_are_not_shared_between_keys(start_server):
    """A prompt that another key sent is not found, or its time to the first token would tell."""
    running = start_server(keys=KeyRing([first := "first-key-1", second := "second-key-2"]))
    body = {"prompt": "word " * 200, "max_tokens": 1}

    def cached(key):
        return running.post("/v1/completions", body, key=key)[2]["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(first) == 0
    assert cached(first) > 0
    assert cached(second) == 0
    assert cached(second) > 0


def test_log_holds_no_prompt_and_no_key(served, caplog):
    """Neither does it for failures."""
    with caplog.at_level("DEBUG"):
        served.chat("xyzzy-secret-prompt")
        served.post(CHAT, {"messages": [{"role": "user", "content": "xyzzy-secret-prompt"}], "n": 99})
        served.ask("GET", "/version?token=xyzzy-query", key="wrong-key-xyzzy")
        served.ask("GET", "/version%0aFORGED", headers={"host": "evil.example"})
    assert caplog.records
    assert not any("\n" in record.getMessage() for record in caplog.records)
    assert "xyzzy" not in caplog.text
    assert served.key not in caplog.text


def test_errors_of_the_core_keep_their_meaning():
    """What is worth trying again says so, and what is not does not."""
    from inference_pio.serve._errors import as_api_error

    assert as_api_error(QueueFullError("full")).status == 429
    assert as_api_error(EngineError("the step failed: RuntimeError: /a/path")).status == 500
    assert "/a/path" not in as_api_error(EngineError("the step failed: RuntimeError: /a/path")).message
