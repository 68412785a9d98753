"""Streams of completions into timelines, with times that the test writes; refusals in words that help."""

from __future__ import annotations

import asyncio
import json

import pytest

from inference_pio.benchmarks._serve_chunks import error_message
from inference_pio.benchmarks._serve_client import (
    Asking,
    OpenAIClient,
    ServerRefusedError,
    _Stream,
    list_models,
    refusal,
)
from inference_pio.benchmarks._serve_http import HttpClient, parse_base_url
from inference_pio.benchmarks._serve_http_reply import HttpProtocolError, ReplyHead
from inference_pio.benchmarks._serve_prompts import Prompt
from inference_pio.benchmarks._serve_timeline import Timeline
from inference_pio.interfaces import ModelNotFoundError, PioError, QueueFullError

OK = ReplyHead(200, "OK", {}, keeps_alive=True)


def stream(*pieces):
    """The timeline of ``(time, bytes)``."""
    timeline = Timeline(start=0.0)
    reader = _Stream(timeline)
    for at, data in pieces:
        reader.take(OK, data, at)
    reader.finish(OK)
    return timeline


def sse(*values):
    return b"".join(b"data: " + (v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n\n" for v in values)


def test_a_completion_by_hand(wire):
    """Chunks that come together have one time; usage is no chunk; several tokens may be in one chunk."""
    got = stream(
        (0.5, sse(wire.text("a"))),
        (0.75, sse(wire.text("b"), wire.text("")) + b": ping\n\n"),
        (1.0, b": ping\n\n"),
        (1.25, sse(wire.text("c d e", "length"))[:20]),
        (1.5, sse(wire.text("c d e", "length"))[20:]),
        (2.0, sse(wire.usage(9, 6), b"[DONE]")),
    )
    assert got.chunks == [0.5, 0.75, 0.75, 1.5]
    assert (got.ttft, got.latency, got.gaps) == (0.5, 1.5, [0.25, 0.0, 0.75])
    assert (got.prompt_tokens, got.output_tokens, got.length, got.text_chunks) == (9, 6, 6, 3)


def test_a_chat_by_hand(wire):
    """As in vLLM the chunk that opens the message and the one that ends it count; when text came is known as well."""
    got = stream(
        (0.125, sse(wire.delta(role="assistant", content=""))),
        (0.5, sse(wire.delta(reasoning_content="hm"))),
        (0.75, sse(wire.delta(tool_calls=[{"index": 0}]))),
        (1.0, sse(wire.delta(content="x"))),
        (1.25, sse(wire.delta("stop"))),
        (1.5, sse(wire.usage(9, 3), b"[DONE]")),
    )
    assert got.chunks == [0.125, 0.5, 0.75, 1.0, 1.25]
    assert (got.first_text, got.text_chunks, got.length) == (0.5, 3, 3)


@pytest.mark.parametrize("ending", [b"[DONE]", None])
def test_usage_in_the_last_chunk_and_no_done(wire, ending):
    """Some servers put usage beside the choices, some end without a word."""
    last = wire.text("b", "stop") | {"usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    got = stream((1.0, sse(wire.text("a"), last, *([ending] if ending else []))))
    assert (got.prompt_tokens, got.output_tokens) == (4, 2)


def test_streams_that_are_no_answers(wire):
    """Errors in the middle, nothing at all, no end, and no JSON."""
    with pytest.raises(ServerRefusedError, match="the stream ends in an error: out of pages"):
        stream((1.0, sse(wire.text("a"), {"error": {"message": "out of\npages", "code": 500}})))
    with pytest.raises(HttpProtocolError, match="ended without a token"):
        stream((1.0, sse(b"[DONE]")))
    with pytest.raises(HttpProtocolError, match="ended without a token"):
        stream((1.0, sse(wire.usage(1, 0), b"[DONE]")))
    with pytest.raises(HttpProtocolError, match="ended before the answer did"):
        stream((1.0, sse(wire.text("a"))))
    for bad in (b"{", b"[]", b'{"choices": 3}', b"\xff"):
        with pytest.raises(HttpProtocolError, match="which is no chunk"):
            stream((1.0, sse(bad)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no such\\nmodel", "type": "x", "param": null, "code": 404}}', "no such model"),
        (b'{"error": "bad"}', "bad"),
        (b'{"object": "error", "message": "old", "code": 400}', "old"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b"<html>\nBad Gateway</html>", "<html> Bad Gateway</html>"),
        (b'{"error": {}}', '{"error": {}}'),
        (b"", ""),
        (b"\xff", "\ufffd"),
        (b'{"error": "' + b"x" * 999 + b'"}', "x" * 297 + "..."),
    ],
)
def test_what_errors_say_in_any_shape(body, message):
    """Nested, flat, by FastAPI, or no JSON at all; on one line, and not without end."""
    assert error_message(body) == message


@pytest.mark.parametrize(
    ("status", "body", "kind", "hint"),
    [
        (401, b'{"error": {"message": "no key"}}', ServerRefusedError, "--api-key-file"),
        (403, b"", ServerRefusedError, "--api-key-file"),
        (404, b'{"error": {"message": "no model x"}}', ModelNotFoundError, "--model"),
        (429, b"", QueueFullError, "asks to wait 7 s"),
        (400, b'{"error": {"message": "unknown field ignore_eos"}}', ServerRefusedError, "--no-ignore-eos"),
        (503, b"", ServerRefusedError, "still loading"),
    ],
)
def test_refusals_say_what_to_do(status, body, kind, hint):
    """With the server's own words."""
    error = refusal(ReplyHead(status, "Reason", {"retry-after": "7"}, keeps_alive=True), body)
    assert type(error) is kind
    assert hint in error.hint
    assert f"the server answers {status}: {error_message(body) or 'Reason'}" == error.message


def test_other_refusals():
    """No hint where there is none to give."""
    assert refusal(ReplyHead(500, "", {}, keeps_alive=True), b"").message == "the server answers 500"
    assert refusal(ReplyHead(400, "", {}, keeps_alive=True), b'{"error": "bad"}').hint is None


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_what_is_asked(endpoint):
    """The fields of OpenAI's API, and those that the user adds."""
    client = OpenAIClient(None, Asking(endpoint, "m", ignore_eos=True, temperature=0.5, extra={"top_k": 3}))
    fields = client.payload(Prompt("hi", 7))
    assert fields["stream_options"] == {"include_usage": True}
    assert fields["stream"] is fields["ignore_eos"] is True
    assert (fields["model"], fields["temperature"], fields["top_k"]) == ("m", 0.5, 3)
    if endpoint == "chat":
        assert fields["messages"] == [{"role": "user", "content": "hi"}]
        assert (fields["max_completion_tokens"], "prompt" in fields) == (7, False)
    else:
        assert (fields["prompt"], fields["max_tokens"]) == ("hi", 7)
    plain = OpenAIClient(None, Asking(endpoint, "m", ignore_eos=False, temperature=None)).payload(Prompt("hi", 7))
    assert not plain.keys() & {"ignore_eos", "temperature"}


def models(url):
    async def main():
        client = HttpClient(parse_base_url(url), {}, timeout_s=0.3)
        try:
            return await list_models(client)
        finally:
            await client.close()

    return asyncio.run(main())


def test_models_of_a_server(serving, wire):
    """Their names; or why there are none."""
    replies = iter(
        [
            [wire.plain({"data": [{"id": "a", "x": 1}, {"id": "b"}]})],
            [wire.plain({"data": "?"})],
            [wire.plain({"error": "no"}, "401 Unauthorized")],
            [1.0],
            [wire.plain(b"x" * (2 << 20))],
        ]
    )
    server = serving(lambda _asked: next(replies))
    assert models(server.url) == ["a", "b"]
    with pytest.raises(HttpProtocolError, match="something else than a list of models"):
        models(server.url)
    with pytest.raises(ServerRefusedError, match="the server answers 401: no"):
        models(server.url)
    with pytest.raises(PioError, match="does not answer"):
        models(server.url)
    with pytest.raises(HttpProtocolError, match="has more than 1048576 bytes"):
        models(server.url)
