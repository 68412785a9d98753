"""What goes wrong, in the shape that the clients of each endpoint know, wherever it goes wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time

import anthropic
import msgspec
import pytest

from inference_pio.interfaces import InvalidRequestError
from inference_pio.serve import Bounds
from inference_pio.serve._anthropic.errors import MessageErrorBody
from inference_pio.serve._errors import ApiError, ErrorBody, invalid, named_as

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COUNT = f"{MESSAGES}/count_tokens"
HELLO = [{"role": "user", "content": "Hi"}]
GOOD = {
    CHAT: {"messages": HELLO, "max_tokens": 1},
    RESPONSES: {"input": "Hi", "max_output_tokens": 1},
    MESSAGES: {"messages": HELLO, "max_tokens": 1},
    COUNT: {"messages": HELLO},
}


def read_all(sock):
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def check_shape(path, status, headers, reply):
    """Exactly the fields of the family's shape, with the id that the headers carry."""
    if path.startswith(MESSAGES):
        error = msgspec.convert(reply, MessageErrorBody, strict=True)
        assert set(reply) == {"type", "error", "request_id"}
        assert set(reply["error"]) == {"type", "message"}
        assert error.type == "error"
        assert error.request_id == headers["request-id"] == headers["x-request-id"]
    else:
        msgspec.convert(reply, ErrorBody, strict=True)
        assert set(reply) == {"error"}
        assert set(reply["error"]) == {"message", "type", "param", "code"}
        assert "request-id" not in headers
    assert status >= 400


BEFORE_THE_HANDLER = {
    "no key": ({"key": None}, 401, "authentication_error"),
    "wrong key": ({"key": "wrong-key-1"}, 401, "authentication_error"),
    "host": ({"headers": {"host": "evil.example"}}, 421, "invalid_request_error"),
    "origin": ({"headers": {"origin": "http://evil.example"}}, 403, "permission_error"),
    "type": ({"headers": {"content-type": "text/plain"}}, 415, "invalid_request_error"),
    "large": ({"headers": {"content-length": str(5 << 20)}}, 413, "request_too_large"),
    "headers": ({"headers": {"x-long": "a" * 16_400}}, 431, "invalid_request_error"),
    "no json": ({"body": b"{"}, 400, "invalid_request_error"),
    "unknown": ({"body": {"maxtokens": 1}}, 400, "invalid_request_error"),
    "method": ({"method": "PUT"}, 405, "invalid_request_error"),
    "model": ({"more": {"model": "none-such"}}, 404, "not_found_error"),
}


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("name", BEFORE_THE_HANDLER)
def test_errors_of_every_layer_have_the_shape_of_their_path(served, path, name):
    """Whichever layer refuses, the client of that path can read it."""
    how, status, kind = BEFORE_THE_HANDLER[name]
    body = how.get("body", GOOD[path] | how.get("more", {}))
    got = served.ask(how.get("method", "POST"), path, body, headers=how.get("headers"), key=how.get("key", served.key))
    check_shape(path, *got)
    assert got[0] == status
    if path.startswith(MESSAGES):
        assert got[2]["error"]["type"] == kind


@pytest.mark.parametrize("path", ["/v1/messages/nothing", "/v1/messagesx", "/v1/nothing"])
def test_paths_below_that_are_not_routed_have_it_too(served, path):
    """And only those below."""
    got = served.ask("GET", path)
    check_shape(path if path != "/v1/messagesx" else "/v1/nothing", *got)
    assert got[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("headers", [{"content-type": "text/plain"}, {"content-encoding": "gzip"}], ids=str)
def test_what_is_not_there_is_so_whatever_is_sent_to_it(served, method, headers):
    """A body that would not be taken elsewhere is no reason to say anything else; the connection goes on."""
    with contextlib.closing(http.client.HTTPConnection(served.host, served.port, timeout=10)) as connection:
        for path, status in (("/v1/nothing", 404), ("/version", 405), ("/v1/models/x", 405), ("/v1/nothing", 404)):
            connection.request(method, path, b"a=b", {"authorization": f"Bearer {served.key}", **headers})
            reply = connection.getresponse()
            check_shape(path, reply.status, dict(reply.getheaders()), json.loads(reply.read()))
            assert reply.status == status
            assert reply.getheader("allow") == (None if status == 404 else "GET")
            assert reply.getheader("connection") is None


def test_good_replies_carry_the_id_where_the_client_looks(served):
    """Anthropic's package shows it as ``_request_id``; OpenAI's endpoints have the one name only."""
    with anthropic.Anthropic(base_url=served.url, api_key=served.key, max_retries=0) as client:
        reply = client.messages.create(model="smollm2-135m-instruct", **GOOD[MESSAGES])
        with pytest.raises(anthropic.NotFoundError) as caught:
            client.messages.create(model="none-such", **GOOD[MESSAGES])
    assert reply._request_id.startswith("req_")
    assert caught.value.request_id == caught.value.body["request_id"]
    assert "request-id" not in served.post(CHAT, GOOD[CHAT])[1]


@pytest.fixture(scope="module")
def draining(start_module_server):
    """The port of a server that has one request to finish before it ends."""
    running = start_module_server(drain_s=60)
    connection = http.client.HTTPConnection(running.host, running.port, timeout=60)
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    connection.getresponse().readline()
    running.server.drain()
    yield running.port
    connection.close()


@pytest.mark.parametrize("path", GOOD)
def test_draining_is_told_in_the_shape_of_the_path(draining, path):
    """503 with Retry-After, an overload to Anthropic's clients."""
    connection = http.client.HTTPConnection("127.0.0.1", draining, timeout=10)
    connection.request("POST", path, json.dumps(GOOD[path]), {"content-type": "application/json"})
    reply = connection.getresponse()
    headers, told = {name.lower(): value for name, value in reply.getheaders()}, json.loads(reply.read())
    connection.close()
    check_shape(path, reply.status, headers, told)
    assert reply.status == 503
    assert int(headers["retry-after"]) >= 1
    if path.startswith(MESSAGES):
        assert told["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(
    ("path", "body", "param", "match"),
    [
        (RESPONSES, {"max_output_tokens": 10**9}, "max_output_tokens", "max_output_tokens 1000000000 is above"),
        (
            RESPONSES,
            {"include": ["message.output_text.logprobs"], "top_logprobs": 25},
            "top_logprobs",
            "top_logprobs must be between 0 and 20",
        ),
        (
            RESPONSES,
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"enum": ["a" * 70_000]}}}},
            "text.format",
            "the JSON schema has",
        ),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": "a"}] * 1025},
            "input",
            "input has 1025 entries",
        ),
        (RESPONSES, {"max_tokens": 5}, "max_tokens", "unknown parameter 'max_tokens'"),
        (MESSAGES, {"stop_sequences": ["a" * 2000]}, None, "a stop string has 2000 characters"),
        (MESSAGES, {"stop_sequences": ["a"] * 17}, None, "stop_sequences must have at most 16 strings"),
        (MESSAGES, {"max_tokens": 10**9}, None, "max_tokens 1000000000 is above"),
        (MESSAGES, {"max_completion_tokens": 5}, None, "unknown parameter 'max_completion_tokens'"),
    ],
)  # fmt: skip
def test_parameters_have_the_names_of_the_endpoint(served, path, body, param, match):
    """Not those of the chat completions behind it."""
    status, _, reply = served.post(path, GOOD[path] | body)
    assert status == 400
    assert reply["error"]["message"].startswith(match)
    assert reply["error"].get("param") == param


def test_renaming_touches_the_named_parameter_alone():
    """A longer name that begins with it, and the rest of the message, stay as they are."""
    names = {"stop": "stop_sequences", "messages": "input"}
    for error, message, param in (
        (invalid("stop has the word stop in it", "stop"), "stop_sequences has the word stop in it", "stop_sequences"),
        (invalid("messages[3].content: none", "messages[3].content"), "input[3].content: none", "input[3].content"),
        (invalid("stops are many", "stops"), "stops are many", "stops"),
        (invalid("no name"), "no name", None),
    ):
        with pytest.raises(ApiError) as caught, named_as(names):
            raise error
        assert (caught.value.message, caught.value.param) == (message, param)
    with pytest.raises(ApiError, match="stop_sequences must be short") as caught, named_as(names):
        raise InvalidRequestError("stop must be short")
    assert caught.value.status == 400


@pytest.mark.parametrize("line", ["GARBAGE", "GET / HTTP/9.9", "GET /\x01 HTTP/1.1"])
def test_what_is_no_http_is_answered_in_json(served, line):
    """By uvicorn's parser, in our words."""
    with socket.create_connection((served.host, served.port), timeout=10) as sock:
        sock.sendall(f"{line}\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_garbage_behind_a_request_is_no_part_of_its_reply(served):
    """A reply that has begun is cut off, not mixed with another."""
    body = json.dumps({"messages": HELLO, "max_tokens": 400, "ignore_eos": True, "stream": True})
    with socket.create_connection((served.host, served.port), timeout=10) as sock:
        sock.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        first = sock.recv(65536)
        assert first.startswith(b"HTTP/1.1 200")
        sock.sendall(b"\x00\x01 garbage\r\n\r\n")
        rest = read_all(sock)
    assert b"400 Bad Request" not in first + rest
    assert b"[DONE]" not in rest
    served.wait_until_idle()


def test_connections_beyond_the_bound_are_told_so(start_server):
    """503 as an error object, counted and named like any reply; those that are open go on."""
    running = start_server(bounds=Bounds(connections=3, header_s=5.0))
    idle = [socket.create_connection((running.host, running.port), timeout=10) for _ in range(2)]
    assert running.ask("GET", "/version", key=None)[0] == 200
    idle.append(socket.create_connection((running.host, running.port), timeout=10))
    deadline = time.monotonic() + 5
    while len(running.server.server_state.connections) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        for path in (CHAT, MESSAGES):
            got = running.post(path, GOOD[path], key=None)
            check_shape(path, *got)
            assert (got[0], got[1]["connection"], got[1]["retry-after"]) == (503, "close", "1")
    finally:
        for sock in idle:
            sock.close()
    deadline = time.monotonic() + 5
    while running.ask("GET", "/version", key=None)[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.ask("GET", "/version", key=None)[0] == 200


def test_failure_inside_is_told_without_its_reason(served, monkeypatch, caplog):
    """500 in the shape of the path; the log has the place and the id, neither has the text of the exception."""

    def fail(*_, **__):
        raise RuntimeError("a secret at /some/path")

    monkeypatch.setattr(served.server.state.models, "lease", fail)
    for path, body in GOOD.items():
        with caplog.at_level("ERROR", logger="inference_pio.serve"):
            got = served.post(path, body)
        check_shape(path, *got)
        assert got[0] == 500
        assert got[1]["x-request-id"] in caplog.text
        assert "secret" not in str(got[2]) + caplog.text
