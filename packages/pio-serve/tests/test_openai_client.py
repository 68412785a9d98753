"""OpenAI's own client against a real server: what it sends is taken, what it reads is right."""

from __future__ import annotations

import json

import openai
import pytest
from pydantic import BaseModel

MODEL = "smollm2-135m-instruct"
CAPITAL = [{"role": "user", "content": "Name the capital of France."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0, timeout=60) as made:
        yield made


def ask(client, **more):
    return client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, **{"max_tokens": 16, **more})


def test_lists_models(client):
    """By page and by name."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "inference-pio"


def test_answers_whole_and_streamed_alike(client):
    """The same greedy text; role first, then content, then the reason, then usage in a chunk without choices."""
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    first, *middle, last, used = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in middle)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in [first, *middle])
    assert text == whole.choices[0].message.content
    assert "Paris" in text
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices[0].delta.content is None
    assert used.choices == []
    assert used.usage.completion_tokens == whole.usage.completion_tokens
    assert used.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {first.id}


def test_no_usage_chunk_unless_asked_for(client):
    """Clients that do not ask may not expect a chunk without choices."""
    assert all(chunk.choices and chunk.usage is None for chunk in ask(client, stream=True))


async def _ask_async(served):
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=8)
        stream = await client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=8, stream=True
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    return whole.choices[0].message.content, "".join(parts)


def test_asynchronous_client(served):
    """As the synchronous one."""
    import asyncio

    whole, streamed = asyncio.run(_ask_async(served))
    assert whole == streamed != ""


def test_stream_helper_accumulates(client):
    """The client's own state machine ends with the whole answer."""
    with client.chat.completions.stream(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=16) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ask(client).choices[0].message.content


class Person(BaseModel):
    """What the answer must be."""

    name: str
    age: int


def test_parses_into_a_model(client):
    """``.parse`` sends a strict schema and gets an instance."""
    reply = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Anna is 31 years old. Give name and age as JSON."}],
        response_format=Person,
        temperature=0,
        max_tokens=60,
    )
    assert isinstance(reply.choices[0].message.parsed, Person)


def test_json_object(client):
    """Any object."""
    reply = ask(client, response_format={"type": "json_object"}, max_tokens=200, stop=["}"], extra_body={
        "include_stop_str_in_output": True})  # fmt: skip
    assert reply.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_call(client, choice):
    """A call comes whatever the model would like, with arguments that follow the schema."""
    tools = [WEATHER] if choice == "required" else [TIME, WEATHER]
    reply = ask(client, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=80)
    [answer] = reply.choices
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    [call] = answer.message.tool_calls
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


def test_streamed_call(client):
    """Name and id first, then arguments in pieces, joined as in the whole answer."""
    forced = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}
    [expected] = ask(client, **forced).choices[0].message.tool_calls
    chunks = list(ask(client, **forced, stream=True))
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    first, *rest = pieces
    assert first.function.name == "get_weather"
    assert first.id.startswith("call_")
    assert first.type == "function"
    assert first.function.arguments == ""
    assert all(piece.id is None and piece.function.name is None and piece.index == 0 for piece in rest)
    assert len(rest) > 1
    assert "".join(piece.function.arguments for piece in rest) == expected.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_conversation_with_tools_goes_on(client):
    """What came as a call can be sent back with the tool's answer."""
    forced = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}
    message = ask(client, **forced).choices[0].message
    messages = [
        *CAPITAL,
        message.model_dump(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"},
    ]
    reply = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=8
    )
    assert reply.choices[0].message.tool_calls is None


def test_call_without_tools_is_refused(client):
    """Nothing can be called."""
    with pytest.raises(openai.BadRequestError, match="there are no tools"):
        ask(client, tool_choice="required")


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(client, stream):
    """Each with its index; seeded ones are the same twice, and not all alike."""

    def texts():
        reply = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Write a line of a poem."}], n=3, seed=7,
            temperature=1.0, max_tokens=12, stream=stream,
        )  # fmt: skip
        found = {}
        for part in reply if stream else [reply]:
            for choice in part.choices:
                content = choice.delta.content if stream else choice.message.content
                found[choice.index] = found.get(choice.index, "") + (content or "")
        return found

    first = texts()
    assert sorted(first) == [0, 1, 2]
    assert len(set(first.values())) > 1
    assert texts() == first


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_chat(client, stream):
    """One entry per token, whose bytes joined are the text; the likeliest first, and the greedy one it is."""
    reply = ask(client, logprobs=True, top_logprobs=3, max_tokens=6, stream=stream)
    entries, text = [], ""
    for part in reply if stream else [reply]:
        for choice in part.choices:
            entries += choice.logprobs.content if choice.logprobs else []
            text += (choice.delta.content if stream else choice.message.content) or ""
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == text
    assert len(entries) == 6
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
        assert sorted((one.logprob for one in entry.top_logprobs), reverse=True) == [
            one.logprob for one in entry.top_logprobs
        ]


def test_completions(client):
    """Text, tokens and lists of both; echo; several continuations of each."""
    prompts = ["The capital of France is", "One, two, three,"]
    one = client.completions.create(model=MODEL, prompt=prompts[0], temperature=0, max_tokens=4)
    assert "Paris" in one.choices[0].text
    both = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=4, n=2, echo=True)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == prompts[0] + one.choices[0].text
    assert both.choices[2].text.startswith(prompts[1])
    assert both.usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_do_not_leak(client, stream):
    """Neither a stop string nor a part of it comes, and the reason is stop."""
    reply = client.completions.create(
        model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=20, stop=["five"], stream=stream
    )
    parts = list(reply) if stream else [reply]
    text = "".join(part.choices[0].text for part in parts)
    assert "four" in text
    assert not text.rstrip().endswith(("f", "fi", "five"))
    assert parts[-1].choices[0].finish_reason == "stop"


def test_logprobs_of_completions_with_echo(client):
    """The prompt's first token has none; offsets follow the text."""
    reply = client.completions.create(
        model=MODEL, prompt="The capital of France is", echo=True, logprobs=2, max_tokens=2, temperature=0
    )
    [choice] = reply.choices
    found = choice.logprobs
    assert found.token_logprobs[0] is None
    assert all(one <= 0 for one in found.token_logprobs[1:])
    assert "".join(found.tokens) == choice.text
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    assert all(len(one) in {2, 3} for one in found.top_logprobs[1:])


def test_logprobs_with_echo_are_streamed_alike(client):
    """The prompt's come with the first piece; all pieces joined are the whole reply's."""
    asked = {"model": MODEL, "prompt": ["The capital of France is", "One, two,"], "echo": True, "logprobs": 2,
             "max_tokens": 3, "temperature": 0}  # fmt: skip
    whole = client.completions.create(**asked)
    joined = {}
    for part in client.completions.create(**asked, stream=True):
        [choice] = part.choices
        text, tokens, offsets, values = joined.setdefault(choice.index, ["", [], [], []])
        joined[choice.index][0] = text + choice.text
        if choice.logprobs is not None:
            tokens += choice.logprobs.tokens
            offsets += choice.logprobs.text_offset
            values += choice.logprobs.token_logprobs
    for choice in whole.choices:
        text, tokens, offsets, values = joined[choice.index]
        assert text == choice.text
        assert tokens == choice.logprobs.tokens
        assert offsets == choice.logprobs.text_offset
        assert values[1:] == pytest.approx(choice.logprobs.token_logprobs[1:], abs=0.02)


def test_echo_alone_scores_a_prompt(client):
    """What evaluation harnesses do: no new token."""
    prompt = "The capital of France is Paris"
    reply = client.completions.create(model=MODEL, prompt=prompt, echo=True, logprobs=0, max_tokens=0)
    assert reply.choices[0].text == prompt
    assert reply.usage.completion_tokens == 0
    assert len(reply.choices[0].logprobs.tokens) == reply.usage.prompt_tokens


def test_bias_and_penalties_change_the_text(client):
    """A token with the greatest bias comes; a banned one does not."""
    plain = client.completions.create(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=1)
    paris = plain.choices[0].text
    banned = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=1,
        extra_body={"bad_words": [paris.strip()], "top_k": 5, "min_p": 0.0, "repetition_penalty": 1.2},
    )  # fmt: skip
    assert banned.choices[0].text != paris
    forced = client.completions.create(model=MODEL, prompt="a", temperature=0, max_tokens=3, logit_bias={"28": 100})
    assert len(set(forced.choices[0].text)) == 1


@pytest.mark.parametrize(
    ("form", "check"),
    [
        ({"choice": ["red", "green"]}, lambda text: text in {"red", "green"}),
        ({"regex": "[0-9]{3}-[0-9]{4}"}, lambda text: len(text) == 8),
        ({"json": {"type": "boolean"}}, lambda text: text in {"true", "false"}),
        ({"grammar": 'start: "yes" | "no"'}, lambda text: text in {"yes", "no"}),
    ],
)  # fmt: skip
def test_structured_outputs(client, form, check):
    """vLLM's parameter, through ``extra_body``."""
    reply = ask(client, extra_body={"structured_outputs": form}, max_tokens=60)
    assert check(reply.choices[0].message.content)


def test_extra_parameters_without_effect_are_taken(client):
    """What clients send for other servers' sake."""
    reply = ask(client, user="me", metadata={"a": "b"}, store=False, service_tier="auto", seed=1, verbosity="low",
                reasoning_effort="low", presence_penalty=0.1, frequency_penalty=0.1)  # fmt: skip
    assert reply.choices[0].message.content


@pytest.mark.parametrize(
    ("more", "kind", "code", "message"),
    [
        ({"temperature": 1000}, openai.BadRequestError, None, "temperature must be"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "no model 'gpt-9'"),
        ({"max_tokens": 10**7}, openai.BadRequestError, None, "max_tokens 10000000 is above"),
    ],
)
def test_errors_are_the_clients_own(client, more, kind, code, message):
    """By status, with the code, and with the request's id."""
    with pytest.raises(kind, match=message) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": CAPITAL, **more})
    assert caught.value.code == code
    assert caught.value.request_id.startswith("req_")


def test_wrong_key_is_an_authentication_error(served):
    """401."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong-key-1", max_retries=0) as client:  # noqa: SIM117
        with pytest.raises(openai.AuthenticationError, match="wrong"):
            client.models.list()
