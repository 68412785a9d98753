"""``/v1/messages`` as Anthropic's own package sees it."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from pydantic import BaseModel

anthropic = pytest.importorskip("anthropic", reason="Anthropic's client, in the group 'test'")

MODEL = "smollm2-135m-instruct"
FRANCE = [{"role": "user", "content": "Name the capital of France."}]
GREEDY = {"extra_body": {"temperature": 0}}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def client_of(running, **how):
    how = how or {"api_key": running.key}
    return anthropic.Anthropic(base_url=running.url, max_retries=0, **how)


@pytest.fixture
def client(served):
    with client_of(served) as made:
        yield made


def test_creates_a_message(served, client):
    """The same answer and counts as the chat endpoint's; what was cached is told apart."""
    reply = client.messages.create(model=MODEL, max_tokens=32, messages=FRANCE, **GREEDY)
    chat = served.chat(FRANCE[0]["content"], max_tokens=32)
    [block] = reply.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert block.text == chat["choices"][0]["message"]["content"]
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", MODEL)
    assert (reply.stop_reason, reply.stop_sequence) == ("end_turn", None)
    assert reply.id.startswith("msg_")
    used = reply.usage
    assert used.input_tokens + used.cache_read_input_tokens == chat["usage"]["prompt_tokens"]
    assert used.output_tokens == chat["usage"]["completion_tokens"]


@pytest.mark.parametrize("how", ["api_key", "auth_token"])
def test_takes_the_key_in_either_header(served, how):
    """``x-api-key`` and ``Authorization: Bearer``; a wrong key is 401 in both."""
    with client_of(served, **{how: served.key}) as client:
        assert client.messages.count_tokens(model=MODEL, messages=FRANCE).input_tokens > 0
    with client_of(served, **{how: "wrong"}) as client, pytest.raises(anthropic.AuthenticationError, match="wrong"):
        client.messages.count_tokens(model=MODEL, messages=FRANCE)


def test_takes_a_conversation_of_blocks(served, client):
    """System, strings and blocks make the prompt that the same chat makes."""
    reply = client.messages.create(
        model=MODEL,
        max_tokens=16,
        system=[{"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "My name is Ada."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello Ada."}]},
            {"role": "user", "content": "What is my name?"},
        ],
        **GREEDY,
    )
    _, _, chat = served.post(
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "You are brief."},
                {"role": "user", "content": "My name is Ada."},
                {"role": "assistant", "content": "Hello Ada."},
                {"role": "user", "content": "What is my name?"},
            ],
            "temperature": 0,
            "max_tokens": 16,
        },
    )
    assert reply.content[0].text == chat["choices"][0]["message"]["content"]
    assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]


def test_says_why_it_stopped(client):
    """The bound on tokens, or the string, which is named and left out."""
    count = [{"role": "user", "content": "Count from 1 to 100 with commas."}]
    cut = client.messages.create(model=MODEL, max_tokens=4, messages=count, **GREEDY)
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 4)
    whole = client.messages.create(model=MODEL, max_tokens=32, messages=FRANCE, **GREEDY).content[0].text
    stopped = client.messages.create(model=MODEL, max_tokens=32, messages=FRANCE, stop_sequences=["Paris"], **GREEDY)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert "".join(block.text for block in stopped.content) == whole.partition("Paris")[0]


def test_streams_the_events_of_a_message(served):
    """On the wire: each event named by its type, in its place, with indices, and nothing after the last."""
    _, headers, raw = served.post(
        "/v1/messages", {"max_tokens": 32, "messages": FRANCE, "temperature": 0, "stream": True}
    )
    assert headers["content-type"].startswith("text/event-stream")
    blocks = [block.split(b"\n") for block in raw.strip().split(b"\n\n") if not block.startswith(b":")]
    events = [json.loads(data.removeprefix(b"data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [b"event: " + event["type"].encode() for event in events]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert len(deltas) > 1
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert "Paris" in "".join(deltas)
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] >= len(deltas)


def test_stream_helper_collects_the_message(client):
    """The package's accumulator ends with the message that is made at once."""
    asked = {"model": MODEL, "max_tokens": 32, "messages": FRANCE, **GREEDY}
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = client.messages.create(**asked)
    assert text == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_counts_tokens(client):
    """As many as the message then reports."""
    asked = {"model": MODEL, "messages": FRANCE, "system": "You are brief."}
    counted = client.messages.count_tokens(**asked).input_tokens
    used = client.messages.create(**asked, max_tokens=1).usage
    assert counted == used.input_tokens + used.cache_read_input_tokens


class Choice(BaseModel):
    """What the model must say."""

    color: Literal["red", "green"]
    sure: bool


def test_follows_a_schema(client):
    """The text has the form."""
    reply = client.messages.create(
        model=MODEL,
        max_tokens=64,
        messages=[{"role": "user", "content": "Which color has grass? Answer in JSON."}],
        output_config={"format": {"type": "json_schema", "schema": Choice.model_json_schema()}},
        **GREEDY,
    )
    assert isinstance(Choice.model_validate_json(reply.content[0].text), Choice)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=["any", "named"])
def test_uses_the_tool_that_it_must(client, choice):
    """A forced call is the only block, and its input follows the schema."""
    reply = client.messages.create(
        model=MODEL, max_tokens=64, messages=FRANCE, tools=[WEATHER], tool_choice=choice, **GREEDY
    )
    [call] = reply.content
    assert (call.type, call.name, reply.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert isinstance(call.input["city"], str)


def test_calls_a_tool_and_takes_its_result(calling):
    """The call is a block beside the text before it; sent back with its result, it is part of the next prompt."""
    with client_of(calling) as client:
        asked = [{"role": "user", "content": "Weather in Paris?"}]
        reply = client.messages.create(model=MODEL, max_tokens=64, messages=asked, tools=[WEATHER], **GREEDY)
        text, call = reply.content
        assert (text.type, text.text, reply.stop_reason) == ("text", "Let me see. ", "tool_use")
        assert (call.type, call.name) == ("tool_use", "get_weather")
        assert call.input["city"] in {"Paris", "Rome"}
        result = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [{"type": "text", "text": "Sunny."}],
        }
        answered = client.messages.create(
            model=MODEL,
            max_tokens=64,
            messages=[
                *asked,
                {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in reply.content]},
                {"role": "user", "content": [result, {"type": "text", "text": "And in Rome?"}]},
            ],
            tools=[WEATHER],
            **GREEDY,
        )
        used = [one.usage.input_tokens + one.usage.cache_read_input_tokens for one in (reply, answered)]
        assert used[1] > used[0]


def test_streams_a_tool_use(calling):
    """The input comes in pieces that join to one object; the text block ends before."""
    with client_of(calling) as client:
        asked = {"model": MODEL, "max_tokens": 64, "messages": FRANCE, "tools": [WEATHER], **GREEDY}
        events = list(client.messages.create(**asked, stream=True))
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
    begins = [(event.index, event.content_block.type) for event in events if event.type == "content_block_start"]
    assert begins == [(0, "text"), (1, "tool_use")]
    pieces = [
        event.delta.partial_json
        for event in events
        if getattr(getattr(event, "delta", None), "type", "") == "input_json_delta"
    ]
    assert json.loads("".join(pieces)) == final.content[1].input
    assert (events[-2].delta.stop_reason, final.stop_reason) == ("tool_use", "tool_use")


@pytest.mark.parametrize(
    ("bound", "reason"),
    [({"max_tokens": 24}, "max_tokens"), ({"max_tokens": 64, "stop_sequences": ["city"]}, "stop_sequence")],
    ids=["tokens", "stop"],
)
def test_leaves_out_a_call_that_was_cut_off(calling, bound, reason):
    """What it has is no input, so nobody may act on it; what was said before stays."""
    with client_of(calling) as client:
        reply = client.messages.create(model=MODEL, messages=FRANCE, tools=[WEATHER], **bound, **GREEDY)
    assert reply.stop_reason == reason
    assert [block.type for block in reply.content] == ["text"]


def test_shows_reasoning_as_a_block(reasoning):
    """Before the text, streamed and not; sent back, it is no error."""
    with client_of(reasoning) as client:
        asked = {"model": MODEL, "max_tokens": 64, **GREEDY}
        whole = client.messages.create(messages=FRANCE, **asked)
        with client.messages.stream(messages=FRANCE, **asked) as stream:
            streamed = stream.get_final_message()
        sent_back = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]}
        again = client.messages.create(messages=[*FRANCE, sent_back, {"role": "user", "content": "Sure?"}], **asked)
    thought, text = whole.content
    assert (thought.type, thought.thinking) == ("thinking", "Is it so? It is. It is.")
    assert (text.type, text.text in {"Yes, it is.", "No, it is."}) == ("text", True)
    assert [block.model_dump() for block in streamed.content] == [block.model_dump() for block in whole.content]
    assert again.stop_reason == "end_turn"


def test_a_message_that_nobody_reads_is_cancelled(served, client):
    """Closing the stream ends the generation and frees its pages."""
    count = [{"role": "user", "content": "Count from 1 to 1000."}]
    stream = client.messages.create(model=MODEL, max_tokens=1500, messages=count, stream=True, **GREEDY)
    kinds = [next(stream).type for _ in range(4)]
    stream.close()
    served.wait_until_idle(seconds=2.0)
    assert kinds == ["message_start", "content_block_start", *["content_block_delta"] * 2]


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"messages": FRANCE}, "'max_tokens' is required"),
        ({"max_tokens": 1, "messages": []}, "at least one message"),
        ({"max_tokens": 0, "messages": FRANCE}, "max_tokens"),
        ({"max_tokens": 1, "messages": [*FRANCE, {"role": "assistant", "content": "It is"}]}, "cannot be continued"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "takes text here"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "'tool_use_id'"),
        (
            {"max_tokens": 1, "messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}, *FRANCE]},
            "needs 'name' and 'id'",
        ),
        ({"max_tokens": 1, "messages": FRANCE, "tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools"),
        ({"max_tokens": 1, "messages": FRANCE, "tool_choice": {"type": "tool"}}, "needs 'name'"),
        ({"max_tokens": 1, "messages": FRANCE, "max_token": 2}, "did you mean 'max_tokens'"),
    ],
)
def test_refuses_bad_messages(served, body, match):
    """400 in Anthropic's shape, with what is wrong."""
    status, _, reply = served.post("/v1/messages", body)
    assert status == 400
    assert reply["type"] == "error"
    assert reply["error"]["type"] == "invalid_request_error"
    assert match in reply["error"]["message"]


def test_a_model_that_is_not_there_is_not_found(client):
    """Anthropic's class of errors for it."""
    with pytest.raises(anthropic.NotFoundError, match="there is no model") as caught:
        client.messages.create(model="claude-9", max_tokens=1, messages=FRANCE)
    assert caught.value.body["error"]["type"] == "not_found_error"


def test_tells_what_failed_in_a_message(start_server):
    """A server that stops in the middle ends its stream by an error event."""
    running = start_server(drain_s=0.0)
    asked = {
        "model": MODEL,
        "max_tokens": 1500,
        "messages": [{"role": "user", "content": "Count from 1 to 1000."}],
        **GREEDY,
    }
    seen = []

    def read(client):
        for event in client.messages.create(**asked, stream=True):
            seen.append(event)
            if len(seen) == 6:
                running.server.drain()

    with client_of(running) as client, pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        read(client)
    assert len(seen) >= 6
