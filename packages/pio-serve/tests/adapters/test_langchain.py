"""The chat endpoint as LangChain's model sees it."""

from __future__ import annotations

from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

langchain_openai = pytest.importorskip("langchain_openai", reason="LangChain's client, in the group 'test'")

MODEL = "smollm2-135m-instruct"
FRANCE = "Name the capital of France."


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Nothing is traced to anywhere, whatever the environment of the tests says."""
    for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")


def model_of(running, **more):
    """A model of LangChain's; one try is enough."""
    return langchain_openai.ChatOpenAI(
        model=MODEL, base_url=f"{running.url}/v1", api_key=running.key, temperature=0, max_retries=0, **more
    )


def test_langchain_invokes(served):
    """The whole answer, with usage and the reason of its end."""
    reply = model_of(served, max_tokens=32).invoke([("system", "You know capitals."), ("human", FRANCE)])
    messages = [{"role": "system", "content": "You know capitals."}, {"role": "user", "content": FRANCE}]
    chat = served.chat(messages=messages, max_tokens=32)
    assert reply.text == chat["choices"][0]["message"]["content"]
    assert reply.response_metadata["finish_reason"] == chat["choices"][0]["finish_reason"]
    assert reply.response_metadata["model_name"] == MODEL
    used = reply.usage_metadata
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"] > 0


def test_langchain_streams(served):
    """Pieces that add up to the whole answer, and the usage with them."""
    model = model_of(served, max_tokens=32, stream_usage=True)
    pieces = list(model.stream(FRANCE))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    assert len([piece for piece in pieces if piece.text]) > 1
    assert whole.text == model.invoke(FRANCE).text
    assert whole.usage_metadata["output_tokens"] > 1


@pytest.mark.parametrize("through", ["chat", "responses"])
def test_langchain_speaks_either_api(served, through):
    """The same answer by way of responses as by way of chat."""
    model = model_of(served, max_tokens=32, use_responses_api=through == "responses")
    assert "Paris" in model.invoke(FRANCE).text
    assert "Paris" in "".join(piece.text for piece in model.stream(FRANCE))


class Choice(BaseModel):
    """The color of a thing."""

    color: Literal["red", "green"] = Field(description="Its color.")
    sure: bool = Field(description="Whether that is sure.")


@pytest.mark.parametrize("through", ["chat", "responses"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_fills_a_form(served, through, method):
    """An instance of the type, whatever the model would have said: by a form of the text, or by a forced call."""
    model = model_of(served, use_responses_api=through == "responses")
    made = model.with_structured_output(Choice, method=method).invoke("Which color has grass?")
    assert isinstance(made, Choice)


def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: Its name.
    """
    return f"Sunny in {city}."


@pytest.mark.parametrize("through", ["chat", "responses"])
def test_langchain_binds_tools(calling, through):
    """A call comes back parsed, streamed or not, and its result makes the next turn."""
    model = model_of(calling, use_responses_api=through == "responses").bind_tools([get_weather])
    reply = model.invoke("Weather in Paris?")
    [call] = reply.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in {"Paris", "Rome"}
    assert reply.text == "Let me see. "
    whole = None
    for piece in model.stream("Weather in Paris?"):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls[0]["args"] == call["args"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": get_weather(**call["args"])}
    answered = model.invoke([("human", "Weather in Paris?"), reply, result])
    assert answered.usage_metadata["input_tokens"] > reply.usage_metadata["input_tokens"]


def test_langchain_embeds(served):
    """Documents and queries as vectors; the check of lengths, which needs a download, is left out."""
    with openai.DefaultHttpxClient() as connections:
        model = langchain_openai.OpenAIEmbeddings(
            model=MODEL,
            base_url=f"{served.url}/v1",
            api_key=served.key,
            check_embedding_ctx_length=False,
            max_retries=0,
            http_client=connections,
        )
        first, second = model.embed_documents(["A cat sleeps.", "A kitten naps."])
        query = model.embed_query("A cat sleeps.")
    assert len(first) == len(query) == 576
    near, far = (sum(a * b for a, b in zip(one, query, strict=True)) for one in (first, second))
    assert near > far
