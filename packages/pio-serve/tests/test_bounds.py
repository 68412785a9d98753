"""How large, how slow and how wrong a request may be: attacks on a real socket, each answered or cut off in time."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import pytest

KEY_LINE = "Authorization: Bearer test-key-of-the-session\r\n"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]


def dial(served):
    return socket.create_connection((served.host, served.port), timeout=10)


def read_all(sock):
    """Everything until the server closes."""
    parts = []
    while True:
        try:
            part = sock.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def exchange(served, text):
    with dial(served) as sock:
        sock.sendall(text.encode() if isinstance(text, str) else text)
        return read_all(sock)


def drip(sock, part, times, pause, sent=None):
    """Send ``part`` again and again."""
    for _ in range(times):
        sock.sendall(part)
        if sent is not None:
            sent.append(len(part))
        time.sleep(pause)


def status_of(reply):
    return int(reply.split(b" ", 2)[1])


def post_head(path=CHAT, more=""):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{KEY_LINE}Content-Type: application/json\r\n{more}"


@pytest.mark.parametrize("sent", ["", "POST /v1/chat/completions HTTP/1.1\r\nHost: local"], ids=["nothing", "half"])
def test_slow_header_is_cut_off(served, sent):
    """A connection that does not finish its headers is closed after the bound (1 s here), not after uvicorn's never."""
    with dial(served) as sock:
        sock.sendall(sent.encode())
        started = time.monotonic()
        assert read_all(sock) == b""
        assert 0.5 < time.monotonic() - started < 4


def test_slow_header_in_drips_is_cut_off(served):
    """Each byte does not start the clock anew."""
    with dial(served) as sock:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"(?i)reset|broken"):
            drip(sock, b"G", 60, 0.1)
        assert time.monotonic() - started < 4


def test_second_request_of_a_connection_has_a_clock_too(served):
    """After a whole request, half a header."""
    with dial(served) as sock:
        sock.sendall(f"GET /version HTTP/1.1\r\nHost: localhost\r\n{KEY_LINE}\r\n".encode())
        reply = b""
        while not reply.endswith(b"}"):
            reply += sock.recv(65536)
        assert b"200 OK" in reply
        sock.sendall(b"GET /version HT")
        started = time.monotonic()
        assert read_all(sock) == b""
        assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    "body",
    ["Content-Length: 100\r\n\r\n{", 'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n'],
    ids=["length", "chunked"],
)
def test_slow_body_is_cut_off(served, body):
    """A body that does not end is answered with 408 and the connection closed; chunked ones as well."""
    started = time.monotonic()
    reply = exchange(served, post_head(more=body))
    assert status_of(reply) == 408
    assert time.monotonic() - started < 4


def test_slow_body_without_a_key_is_not_waited_for(served):
    """Nobody without a key has the server read a body: else it would tell, after a second, that none came."""
    reply = exchange(served, post_head(more="Content-Length: 100\r\n\r\n").replace(KEY_LINE, ""))
    assert status_of(reply) == 401


def test_large_body_is_refused_unread(served):
    """64 MiB are refused by their length alone."""
    reply = exchange(served, post_head(more=f"Content-Length: {64 << 20}\r\n\r\n"))
    assert status_of(reply) == 413


def test_large_chunked_body_is_refused_within(served):
    """Without a length, reading stops at the bound."""
    sent: list[int] = []
    with dial(served) as sock:
        sock.sendall(post_head(more="Transfer-Encoding: chunked\r\n\r\n").encode())
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with pytest.raises(OSError, match=r"(?i)reset|broken"):
            drip(sock, chunk, 4096, 0.0, sent)
    assert 65536 * len(sent) < 32 << 20


@pytest.mark.parametrize("size", [20_000, 1 << 20], ids=["20k", "1M"])
@pytest.mark.parametrize("ended", [True, False])
def test_large_headers_are_refused(served, size, ended):
    """Beyond 16 KiB: 431, or the connection ends, whether or not the headers end."""
    head = f"GET /version HTTP/1.1\r\nHost: localhost\r\n{KEY_LINE}X-Big: {'a' * size}" + ("\r\n\r\n" if ended else "")
    with dial(served) as sock:
        try:
            sock.sendall(head.encode())
        except OSError:
            return
        reply = read_all(sock)
    assert not reply or status_of(reply) == 431


def test_length_said_twice_is_refused(served):
    """Content-Length with Transfer-Encoding is how requests are smuggled past a proxy."""
    body = "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert status_of(exchange(served, post_head(more=body))) == 400
    assert status_of(exchange(served, post_head(more="Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"))) == 400


@pytest.mark.parametrize("line", ["GARBAGE", "GET / HTTP/9.9", "GET http://[ HTTP/1.1", "\x00\x01\x02"])
def test_what_is_no_http_is_400(served, line):
    """And the connection ends."""
    reply = exchange(served, f"{line}\r\nHost: localhost\r\n\r\n")
    assert status_of(reply) in {400, 401}


def test_slow_reader_is_cut_off(served):
    """A client that asks for much and reads nothing is closed, and its answer cancelled."""
    with dial(served) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        body = json.dumps({"messages": HELLO, "max_tokens": 1800, "n": 8, "stream": True, "ignore_eos": True,
                           "logprobs": True, "top_logprobs": 20})  # fmt: skip
        sock.sendall(f"{post_head()}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        deadline = time.monotonic() + 30
        while not served.engine.scheduler.running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert served.engine.scheduler.running
        served.wait_until_idle(30)
    assert served.model.llm.metrics.requests_finished.values.get("abort", 0) > 0


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "localhost@evil.example", ""])
def test_other_names_are_refused(served, host):
    """What a page elsewhere can make a browser send is not our name."""
    status, _, reply = served.ask("GET", "/version", headers={"host": host})
    assert status == 421
    assert reply["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:5", "192.168.0.7"])
def test_own_names_are_taken(served, host):
    """Loopback's names, and addresses, which no page can make its own."""
    assert served.ask("GET", "/version", headers={"host": host})[0] == 200


def test_pages_of_other_origins_are_refused(served):
    """No CORS header comes back, and no preflight succeeds."""
    for method in ("OPTIONS", "POST"):
        status, headers, _ = served.ask(method, CHAT, {"messages": HELLO}, headers={"origin": "http://evil.example"})
        assert status == 403
        assert not [name for name in headers if name.startswith("access-control")]
    own = {"origin": served.url}
    assert served.ask("OPTIONS", CHAT, headers=own)[0] == 405
    assert served.post(CHAT, {"messages": HELLO, "max_tokens": 1}, headers=own)[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_forms_of_other_pages_are_refused(served, kind):
    """Types that a browser sends across origins without asking."""
    assert served.post(CHAT, {"messages": HELLO}, headers={"content-type": kind})[0] == 415


def test_compressed_bodies_are_refused(served):
    """There is nothing to unpack, so nothing to explode."""
    assert served.post(CHAT, b"\x1f\x8b", headers={"content-encoding": "gzip"})[0] == 415


def test_replies_name_the_request_and_not_the_server(served):
    """A plain id of the client comes back, another is replaced; no Server header."""
    for given, expected in (("my-id.7", "my-id.7"), ("bad id\tx", None), ("x" * 200, None)):
        for method, path in (("GET", "/version"), ("GET", "/nothing"), ("DELETE", CHAT)):
            _, headers, _ = served.ask(method, path, headers={"x-request-id": given})
            assert "server" not in headers
            got = headers["x-request-id"]
            assert got == expected if expected else got.startswith("req_")


def test_what_is_not_there_is_404(served):
    """And what is there in another way 405, both as error objects."""
    status, _, reply = served.ask("GET", "/v1/nothing")
    assert (status, reply["error"]["code"]) == (404, "not_found")
    status, headers, reply = served.ask("GET", CHAT)
    assert (status, headers["allow"], reply["error"]["code"]) == (405, "POST", "method_not_allowed")


BAD = {
    "not json": (b"{", "invalid_json", None),
    "no object": (b"[]", "invalid_type", None),
    "deep": (b'{"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "invalid_json", None),
    "not utf-8": (b'{"user": "\xff"}', "invalid_json", None),
    "lone surrogate": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, None),
    "no messages": ({}, "missing_parameter", "messages"),
    "empty messages": ({"messages": []}, None, "messages"),
    "too many messages": ({"messages": HELLO * 1025}, None, "messages"),
    "bad role": ({"messages": [{"role": "boss", "content": "Hi"}]}, "invalid_type", "messages[0].role"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "messages[0].content[0]"),
    "misspelt": ({"messages": HELLO, "temprature": 1}, "unknown_parameter", "temprature"),
    "template": ({"messages": HELLO, "chat_template": "{{ 1 }}"}, "unknown_parameter", "chat_template"),
    "template variable": (
        {"messages": HELLO, "chat_template_kwargs": {"messages": []}}, None, "chat_template_kwargs.messages"
    ),
    "n": ({"messages": HELLO, "n": 10**9}, None, "n"),
    "n 0": ({"messages": HELLO, "n": 0}, None, "n"),
    "max_tokens -1": ({"messages": HELLO, "max_tokens": -1}, None, "max_tokens"),
    "max_tokens 0": ({"messages": HELLO, "max_tokens": 0}, None, "max_tokens"),
    "max_tokens 10^9": ({"messages": HELLO, "max_tokens": 10**9}, None, "max_tokens"),
    "max_tokens 10^30": ({"messages": HELLO, "max_tokens": 10**30}, None, "max_tokens"),
    "nan": (b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}', "invalid_json", None),
    "infinite": (b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": 1e999}', None, None),
    "temperature": ({"messages": HELLO, "temperature": -0.1}, None, "temperature"),
    "top_p": ({"messages": HELLO, "top_p": 0}, None, "top_p"),
    "text for number": ({"messages": HELLO, "top_p": "1"}, "invalid_type", "top_p"),
    "stops": ({"messages": HELLO, "stop": ["a"] * 17}, None, "stop"),
    "long stop": ({"messages": HELLO, "stop": "a" * 1025}, None, "stop"),
    "empty stop": ({"messages": HELLO, "stop": ""}, None, "stop"),
    "biases": ({"messages": HELLO, "logit_bias": {str(i): 1 for i in range(1025)}}, None, "logit_bias"),
    "bias beyond": ({"messages": HELLO, "logit_bias": {"5": 101}}, None, "logit_bias"),
    "top_logprobs": ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, None, "logprobs"),
    "top_logprobs alone": ({"messages": HELLO, "top_logprobs": 2}, None, "top_logprobs"),
    "stream_options": ({"messages": HELLO, "stream_options": {"include_usage": True}}, None, "stream_options"),
    "two forms": (
        {"messages": HELLO, "structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        None, "structured_outputs",
    ),
    "no form": ({"messages": HELLO, "structured_outputs": {}}, None, "structured_outputs"),
    "unknown format": ({"messages": HELLO, "response_format": {"type": "xml"}}, "invalid_type", "response_format.type"),
    "impossible schema": (
        {"messages": HELLO, "structured_outputs": {"json": {"type": "string", "minLength": 3, "maxLength": 1}}},
        None, "structured_outputs",
    ),
    "large schema": (
        {"messages": HELLO, "structured_outputs": {"json": {"enum": ["a" * 70_000]}}}, None, "structured_outputs"
    ),
    "parens": (
        {"messages": HELLO, "structured_outputs": {"regex": "(" * 30_000 + ")" * 30_000}}, None, "structured_outputs"
    ),
    "large form": ({"messages": HELLO, "structured_outputs": {"regex": "(a|aa)" * 9000}}, None, "structured_outputs"),
    "tools": ({"messages": HELLO, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_type",
              "tools[0].function.name"),
    "too long": ({"messages": [{"role": "user", "content": "word " * 3000}]}, "context_length_exceeded", None),
}  # fmt: skip


def deep_schema(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_400_with_their_parameter(served, name):
    """Never 5xx, which clients try again; quickly; and without paths or addresses in the message."""
    body, code, param = BAD[name]
    started = time.monotonic()
    status, _, reply = served.post(CHAT, body)
    assert time.monotonic() - started < 5
    assert status == 400, reply
    error = reply["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code or code is None
    assert error["param"] == param or param is None
    assert not [
        path for path in (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])) if path in error["message"]
    ]
    assert "0x" not in error["message"]
    assert "Traceback" not in error["message"]


def test_explosive_pattern_does_not_hold_others_up(served):
    """A pattern that backtracking engines never finish: its text comes, token by token, and at once."""
    started = time.monotonic()
    served.chat("Hi", structured_outputs={"regex": "(a{1,900}){1,900}"}, max_tokens=12)
    served.chat("Hi", structured_outputs={"regex": "(a+)+$"}, max_tokens=12)
    assert time.monotonic() - started < 10


def test_form_that_fails_within_a_text_is_400(served):
    """It would fail again, so no client must try it again; others are not disturbed."""
    body = {"messages": HELLO, "structured_outputs": {"regex": "(a{1,900}){1,900}"}, "temperature": 0}
    status, _, reply = served.post(CHAT, body)
    assert (status, reply["error"]["code"]) == (400, "form_failed")
    assert served.chat()["choices"][0]["message"]["content"]


def test_deep_schema_is_400(served):
    """Depth is bounded before the schema is compiled."""
    body = {
        "messages": HELLO,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": deep_schema(40)}},
    }
    status, _, reply = served.post(CHAT, body)
    assert status == 400
    assert reply["error"]["param"] == "response_format"
    assert "nested" in reply["error"]["message"]


def test_server_answers_after_all_of_this(served):
    """Nothing above left anything running."""
    served.wait_until_idle()
    assert served.chat()["choices"][0]["message"]["content"]
