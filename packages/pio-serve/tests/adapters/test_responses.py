"""``/v1/responses`` as OpenAI's own package sees it."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

MODEL = "smollm2-135m-instruct"
FRANCE = "Name the capital of France."
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def client_of(running):
    """The package's client; one try is enough."""
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0)


@pytest.fixture
def client(served):
    with client_of(served) as made:
        yield made


def test_creates_a_response(client):
    """A text in, a text out, with the same answer and counts as the chat endpoint's."""
    reply = client.responses.create(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=32)
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": FRANCE}], temperature=0, max_tokens=32
    )
    assert "Paris" in reply.output_text
    assert reply.output_text == chat.choices[0].message.content
    assert (reply.object, reply.status, reply.error, reply.incomplete_details) == ("response", "completed", None, None)
    assert reply.id.startswith("resp_")
    [item] = reply.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert reply.usage.input_tokens == chat.usage.prompt_tokens
    assert reply.usage.output_tokens == chat.usage.completion_tokens
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.temperature == 0
    assert reply.store is False


def test_takes_a_conversation_of_items(served, client):
    """Instructions, strings, parts and earlier answers make the prompt that the same chat makes."""
    reply = client.responses.create(
        model=MODEL,
        instructions="You are brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "My name is Ada."}]},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hello Ada.", "annotations": []}],
            },
            {"role": "user", "content": "What is my name?"},
        ],
        temperature=0,
        max_output_tokens=16,
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
    assert reply.output_text == chat["choices"][0]["message"]["content"]
    assert reply.usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert reply.instructions == "You are brief."


def test_an_answer_cut_off_is_incomplete(client):
    """Its status and that of its item say so, and why."""
    reply = client.responses.create(model=MODEL, input="Count from 1 to 100.", temperature=0, max_output_tokens=4)
    assert reply.status == "incomplete"
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.output[0].status == "incomplete"
    assert reply.usage.output_tokens == 4


def test_streams_the_sequence_of_events(client):
    """Every event in its place, numbered, with the same text in the pieces, at the end of it and in the response."""
    events = list(client.responses.create(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=32, stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []
    assert events[2].item.content == []
    assert events[3].part.text == ""
    text = "".join(deltas)
    assert "Paris" in text
    assert events[-4].text == events[-3].part.text == events[-2].item.content[0].text == text
    final = events[-1].response
    assert (final.status, final.output_text) == ("completed", text)
    assert final.usage.output_tokens >= len(deltas)
    assert {event.item_id for event in events[3:-2]} == {final.output[0].id}


def test_a_stream_cut_off_ends_incomplete(client):
    """The last event is another, and holds what there is."""
    *_, last = client.responses.create(
        model=MODEL, input="Count from 1 to 100.", temperature=0, max_output_tokens=4, stream=True
    )
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text


def test_streams_name_their_events_and_have_no_done(served):
    """On the wire each event is named by its type, and nothing follows the last."""
    _, headers, raw = served.post(
        "/v1/responses", {"input": "Hello", "max_output_tokens": 2, "temperature": 0, "stream": True}
    )
    assert headers["content-type"].startswith("text/event-stream")
    blocks = [block.split(b"\n") for block in raw.strip().split(b"\n\n") if not block.startswith(b":")]
    for name, data in blocks:
        assert name == b"event: " + json.loads(data.removeprefix(b"data: "))["type"].encode()
    assert b"[DONE]" not in raw


def test_stream_helper_collects_the_response(client):
    """The package's accumulator, which checks identities, agrees with the last event."""
    with client.responses.stream(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=32) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text
    assert "Paris" in text


class Choice(BaseModel):
    """What the model must say."""

    color: Literal["red", "green"]
    sure: bool


def test_parses_a_form(client):
    """``parse`` sends the schema of a type and finds an instance of it."""
    reply = client.responses.parse(
        model=MODEL, input="Which color has grass? Answer in JSON.", text_format=Choice, temperature=0
    )
    assert isinstance(reply.output_parsed, Choice)
    assert reply.text.format.type == "json_schema"
    assert reply.text.format.name == "Choice"


def test_any_json_object(client):
    """The older form."""
    reply = client.responses.create(
        model=MODEL,
        input="Describe a cat as JSON with one key.",
        text={"format": {"type": "json_object"}},
        temperature=0,
        max_output_tokens=200,
    )
    if reply.status == "completed":
        assert isinstance(json.loads(reply.output_text), dict)
    assert reply.output_text.lstrip().startswith("{")


def test_reports_logprobs(client):
    """Of every token of the text, with as many candidates as asked, streamed and not."""
    asked = {
        "model": MODEL,
        "input": FRANCE,
        "temperature": 0,
        "max_output_tokens": 6,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = client.responses.create(**asked).output[0].content[0]
    assert "".join(entry.token for entry in whole.logprobs) == whole.text
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in whole.logprobs)
    events = list(client.responses.create(**asked, stream=True))
    pieces = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert [entry.token for entry in pieces] == [entry.token for entry in whole.logprobs]


@pytest.mark.parametrize(
    "field",
    [{"store": True}, {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}],
    ids=lambda field: next(iter(field)),
)
def test_refuses_what_must_be_stored(client, field):
    """Once and for all, naming the parameter and the way out."""
    [name] = field
    with pytest.raises(openai.BadRequestError, match="send the whole conversation") as caught:
        client.responses.create(model=MODEL, input="Hello", **field)
    assert caught.value.param == name
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize(
    ("body", "param", "match"),
    [
        ({"input": []}, "input", "at least one item"),
        ({}, "input", "required"),
        ({"input": [{"role": "user"}]}, "input[0]", "needs 'role' and 'content'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "text parts only"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]", "needs 'name' and 'call_id'"),
        ({"input": [{"type": "function_call_output", "output": "1"}]}, "input[0]", "needs 'call_id' and 'output'"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "web_search_call"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens", "at least 1, got 0"),
        ({"input": "a", "truncation": "auto"}, "truncation", "shorten the conversation"),
        ({"input": "a", "top_logprobs": 2}, "top_logprobs", "needs 'message.output_text.logprobs'"),
        ({"input": "a", "max_tokens": 2}, "max_tokens", "did you mean"),
    ],
)
def test_refuses_bad_responses(served, body, param, match):
    """400, with the parameter at fault and what is wrong with it."""
    status, _, reply = served.post("/v1/responses", body)
    assert status == 400
    assert reply["error"]["param"] == param
    assert match in reply["error"]["message"]


def test_answers_in_words_where_no_call_may_come(client):
    """Tools are told back as they were given, and ``"none"`` keeps the model from calling them."""
    reply = client.responses.create(
        model=MODEL, input=FRANCE, tools=[WEATHER], tool_choice="none", temperature=0, max_output_tokens=32
    )
    assert "Paris" in reply.output_text
    assert reply.tool_choice == "none"
    [tool] = reply.tools
    assert tool.name == "get_weather"
    assert tool.parameters == WEATHER["parameters"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}], ids=["any", "named"])
def test_calls_the_tool_that_it_must(client, choice):
    """A forced call is the only item, and its arguments follow the schema."""
    reply = client.responses.create(
        model=MODEL, input="Weather in Paris?", tools=[WEATHER], tool_choice=choice, temperature=0
    )
    [call] = reply.output
    assert (call.type, call.name, reply.status) == ("function_call", "get_weather", "completed")
    assert isinstance(json.loads(call.arguments)["city"], str)


def test_calls_a_tool_and_takes_its_output(calling):
    """The call is an item beside the text before it; sent back with its output, it is part of the next prompt."""
    with client_of(calling) as client:
        asked = [{"role": "user", "content": "Weather in Paris?"}]
        reply = client.responses.create(model=MODEL, input=asked, tools=[WEATHER], temperature=0)
        text, call = reply.output
        assert (text.type, text.content[0].text) == ("message", "Let me see. ")
        assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
        assert json.loads(call.arguments)["city"] in {"Paris", "Rome"}
        answered = client.responses.create(
            model=MODEL,
            input=[
                *asked,
                *(item.model_dump(exclude_none=True) for item in reply.output),
                {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
            ],
            tools=[WEATHER],
            temperature=0,
        )
        assert answered.usage.input_tokens > reply.usage.input_tokens


def test_streams_a_call(calling):
    """The text ends before the call begins; the arguments come in pieces that join to the whole."""
    with client_of(calling) as client:
        events = list(
            client.responses.create(model=MODEL, input="Weather in Paris?", tools=[WEATHER], temperature=0, stream=True)
        )
        with client.responses.stream(model=MODEL, input="Weather in Paris?", tools=[WEATHER], temperature=0) as stream:
            final = stream.get_final_response()
    kinds = [event.type for event in events]
    begin = next(place for place, event in enumerate(events) if kinds[place].endswith("added") and place > 3)
    assert kinds[begin - 1] == "response.output_item.done"
    assert (events[begin].output_index, events[begin].item.type, events[begin].item.arguments) == (
        1,
        "function_call",
        "",
    )
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert kinds[begin + 1 :] == [
        *["response.function_call_arguments.delta"] * len(pieces),
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-3].arguments == events[-2].item.arguments == "".join(pieces)
    assert json.loads("".join(pieces))["city"] in {"Paris", "Rome"}
    assert final.output[1].arguments == "".join(pieces)


def test_shows_reasoning_as_an_item(reasoning):
    """Before the message, in events of its own, counted; sent back, it is no error."""
    with client_of(reasoning) as client:
        asked = {"model": MODEL, "temperature": 0, "max_output_tokens": 64}
        events = list(client.responses.create(input="Is it?", stream=True, **asked))
        whole = client.responses.create(input="Is it?", **asked)
        sent_back = [item.model_dump(exclude_none=True) for item in whole.output]
        again = client.responses.create(input=[*sent_back, {"role": "user", "content": "Sure?"}], **asked)
    thought, message = whole.output
    assert (thought.type, thought.status, message.type) == ("reasoning", "completed", "message")
    assert thought.content[0].text == "Is it so? It is. It is."
    assert whole.output_text in {"Yes, it is.", "No, it is."}
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    kinds = [event.type.removeprefix("response.") for event in events]
    begin, end = kinds.index("reasoning_text.delta"), kinds.index("reasoning_text.done")
    assert kinds[2:begin] == ["output_item.added", "content_part.added"]
    assert set(kinds[begin:end]) == {"reasoning_text.delta"}
    assert kinds[end + 1 : end + 5] == [
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
    ]
    assert "".join(event.delta for event in events[begin:end]) == events[end].text == thought.content[0].text
    assert events[-1].response.output_text == whole.output_text
    assert again.status == "completed"


def test_a_response_that_nobody_reads_is_cancelled(served, client):
    """Closing the stream ends the generation and frees its pages."""
    stream = client.responses.create(
        model=MODEL, input="Count from 1 to 1000.", temperature=0, max_output_tokens=1500, stream=True
    )
    kinds = [next(stream).type for _ in range(6)]
    stream.close()
    served.wait_until_idle(seconds=2.0)
    assert kinds[-1] == "response.output_text.delta"


def test_tells_what_failed_in_a_stream(start_server):
    """A server that stops in the middle ends its stream by an event that says so."""
    running = start_server(drain_s=0.0)
    with client_of(running) as client:
        stream = client.responses.create(
            model=MODEL, input="Count from 1 to 1000.", temperature=0, max_output_tokens=1500, stream=True
        )
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if len(kinds) == 6:
                running.server.drain()
            last = event
    assert last.type == "response.failed"
    assert (last.response.status, last.response.error.code) == ("failed", "stopping")
    assert last.sequence_number == len(kinds) - 1
