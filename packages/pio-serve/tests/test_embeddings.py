"""Vectors of texts, as OpenAI's client and raw requests get them."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time

import numpy as np
import openai
import pytest

from inference_pio.serve import Bounds

MODEL = "smollm2-135m-instruct"
TEXTS = ["A cat sleeps on the sofa.", "The kitten is napping on the couch.", "The stock market fell sharply today."]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as made:
        yield made


def embed(served, given, **more):
    """A request that must succeed; its vectors."""
    status, _, reply = served.post("/v1/embeddings", {"input": given, **more})
    assert status == 200, reply
    assert [item["index"] for item in reply["data"]] == list(range(len(reply["data"])))
    return [item["embedding"] for item in reply["data"]]


def refused(served, body):
    """The error of a request that must be refused as it stands."""
    status, _, reply = served.post("/v1/embeddings", body)
    assert status == 400, reply
    assert reply["error"]["type"] == "invalid_request_error"
    return reply["error"]


def test_openai_client_embeds(served, client):
    """By default it asks for base64; vectors, usage and shape are the same in either format."""
    reply = client.embeddings.create(model=MODEL, input=TEXTS)
    plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert (reply.object, reply.model, len(reply.data)) == ("list", MODEL, 3)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 10
    assert reply.usage == plain.usage
    for place, (packed, listed) in enumerate(zip(reply.data, plain.data, strict=True)):
        assert (packed.object, packed.index, listed.index) == ("embedding", place, place)
        assert packed.embedding == listed.embedding
        assert len(packed.embedding) == 576
        assert np.linalg.norm(packed.embedding) == pytest.approx(1, abs=1e-5)
    cat, kitten, market = (item.embedding for item in reply.data)
    assert np.dot(cat, kitten) > np.dot(cat, market) + 0.05


async def ask_asynchronously(served):
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
        return (await client.embeddings.create(model=MODEL, input=TEXTS[0])).data[0].embedding


def test_asynchronous_client_embeds(served, client):
    """The same vector."""
    import asyncio

    expected = client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding
    np.testing.assert_allclose(asyncio.run(ask_asynchronously(served)), expected, atol=1e-3)


def test_base64_holds_little_endian_floats(served):
    """As OpenAI's servers send them."""
    [packed] = embed(served, TEXTS[0], encoding_format="base64")
    [listed] = embed(served, TEXTS[0])
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), dtype="<f4"), listed, atol=1e-3)


def test_text_and_tokens_are_the_same(served):
    """Input is a text, token ids, or a list of either, which may be mixed."""
    tokens = [served.post("/tokenize", {"prompt": text})[2]["tokens"] for text in TEXTS[:2]]
    texts = embed(served, TEXTS[:2])
    for given, expected in (
        (tokens, texts),
        (tokens[0], texts[:1]),
        (TEXTS[1], texts[1:]),
        ([TEXTS[0], tokens[1]], texts),
    ):
        np.testing.assert_allclose(embed(served, given), expected, atol=5e-3)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_and_length_can_be_chosen(served, pooling):
    """What the engine gives for the same tokens, whatever else it computes."""
    [plain] = embed(served, TEXTS[0], pooling=pooling, normalize=False)
    [unit] = embed(served, TEXTS[0], pooling=pooling)
    assert np.linalg.norm(plain) > 2
    np.testing.assert_allclose(unit, np.array(plain) / np.linalg.norm(plain), atol=5e-3)
    other = embed(served, TEXTS[0], pooling={"mean": "last", "last": "mean"}[pooling])[0]
    assert np.dot(unit, other) < 0.99


def test_vectors_beside_chats(served):
    """Chats go on while lists are embedded, and nothing is left of either."""
    results = []

    def run():
        results.append(embed(served, [f"Sentence number {number}." for number in range(70)]))

    thread = threading.Thread(target=run)
    thread.start()
    assert "Paris" in served.chat("Name the capital of France.", max_tokens=16)["choices"][0]["message"]["content"]
    thread.join(60)
    assert len(results[0]) == 70
    served.wait_until_idle()


def test_a_long_text_in_chunks(served):
    """As long as the context, which is four times what a step reads; one token more is refused with the figures."""
    [vector] = embed(served, [5] * 2048)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    error = refused(served, {"input": [[1, 2], [5] * 2049]})
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "input"
    assert error["message"] == "input[1] has 2049 tokens, and the context holds 2048"


@pytest.mark.parametrize(
    "more, param, message",
    [
        ({"input": []}, "input", "input must hold 1 to 2048 texts, got 0"),
        ({"input": ["a"] * 2049}, "input", "input must hold 1 to 2048 texts, got 2049"),
        ({"input": [[1] * 150] * 2001}, "input", "input has 300150 tokens in all; the limit is 300000"),
        ({"input": [1, "a"]}, "input", "input must be text, token ids, or a list of either"),
        ({"input": ""}, "input", "input[0] has no tokens"),
        ({"input": ["a", []]}, "input", "input[1] has no tokens"),
        ({"input": 3}, "input", "input: expected"),
        ({"input": [1.5]}, "input[0]", "expected"),
        ({"input": [-1]}, None, "token id -1 is not in the vocabulary of 49152 tokens"),
        ({"input": [[1], [49152]]}, None, "token id 49152 is not in the vocabulary"),
        ({}, "input", "parameter 'input' is required"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid enum value 'hex'"),
        ({"input": "a", "pooling": "max"}, "pooling", "invalid enum value 'max'"),
        ({"input": "a", "dimensions": 64}, "dimensions", "dimensions must be 576, the size of this model's vectors"),
        ({"input": "a", "dimension": 64}, "dimension", "unknown parameter 'dimension' (did you mean 'dimensions'?)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_embedded_is_refused(served, more, param, message):
    """With the parameter and the way out; nothing is computed for it."""
    error = refused(served, {"model": MODEL, **more})
    assert message in error["message"]
    assert error["param"] == param
    served.wait_until_idle()


def test_the_models_own_size_may_be_asked_for(client):
    """Clients that always send it are served; so are those that send who asks."""
    reply = client.embeddings.create(model=MODEL, input="a", dimensions=576, user="someone")
    assert len(reply.data[0].embedding) == 576


def test_a_key_is_needed(served):
    """And a model that is there."""
    assert served.post("/v1/embeddings", {"input": "a"}, key=None)[0] == 401
    status, _, reply = served.post("/v1/embeddings", {"input": "a", "model": "gpt-9"})
    assert (status, reply["error"]["code"]) == (404, "model_not_found")


def test_a_client_that_goes_away_ends_its_request(served):
    """Inputs that wait are not computed any more, and pages are free."""
    connection = http.client.HTTPConnection(served.host, served.port)
    body = json.dumps({"input": [[5] * 600] * 100})
    headers = {"authorization": f"Bearer {served.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/embeddings", body, headers)
    deadline = time.monotonic() + 10
    while not served.engine.scheduler.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.engine.scheduler.running
    connection.close()
    read = served.engine.metrics.prompt_tokens.total
    served.wait_until_idle()
    assert served.engine.metrics.prompt_tokens.total - read < 40_000


def test_vectors_that_take_too_long_are_none(start_server):
    """There is no part of a vector: whoever asks may try again. Its pages are free."""
    running = start_server(bounds=Bounds(request_s=0.3))
    status, headers, reply = running.post("/v1/embeddings", {"input": [[5] * 2000] * 8})
    assert (status, reply["error"]["code"]) == (503, "timeout")
    assert reply["error"]["message"] == "the vectors were not made within 0.3 s"
    assert "retry-after" in headers
    running.wait_until_idle()


def test_a_request_that_is_cancelled_is_told_so(served):
    """By whoever runs the server: no client tries again."""
    answers = []
    body, headers = {"input": [[5] * 1000] * 60}, {"x-request-id": "vectors-1"}
    asking = threading.Thread(target=lambda: answers.append(served.post("/v1/embeddings", body, headers=headers)))
    asking.start()
    deadline = time.monotonic() + 10
    while not (streams := list(served.model.engine._streams.values())) and time.monotonic() < deadline:
        time.sleep(0.01)
    streams[0].loop.call_soon_threadsafe(served.server.state.requests.cancel, "vectors-1")
    asking.join(20)
    [(status, _, reply)] = answers
    assert (status, reply["error"]["code"]) == (400, "cancelled")
    served.wait_until_idle()


def test_vectors_cost_tokens(start_server):
    """They count against the tokens that a key may use."""
    running = start_server(tokens_per_minute=40)
    assert running.post("/v1/embeddings", {"input": [[5] * 30] * 2}, key=None)[0] == 200
    status, headers, reply = running.post("/v1/embeddings", {"input": "a"}, key=None)
    assert (status, reply["error"]["code"]) == (429, "tokens_per_minute")
    assert int(headers["retry-after"]) >= 1


def test_a_full_queue_refuses_a_list_as_a_whole(start_server, load_model):
    """It is told to come back; a list that was let in is finished, however short the queue."""
    running = start_server(max_waiting=1)
    vectors = embed(running, [[5, number] for number in range(40)])
    assert len(vectors) == 40
    long = threading.Thread(target=embed, args=(running, [[7] * 300] * 12))
    long.start()
    deadline = time.monotonic() + 10
    while not running.model.engine.snapshot().requests_waiting.value and time.monotonic() < deadline:
        time.sleep(0.005)
    # Between two inputs of the list, the queue is not full for a moment.
    while (found := running.post("/v1/embeddings", {"input": "a"}))[0] == 200 and long.is_alive():
        time.sleep(0.005)
    status, headers, reply = found
    assert (status, reply["error"]["code"]) == (429, "queue_full")
    assert "retry-after" in headers
    long.join(60)
    assert not long.is_alive()
    running.wait_until_idle()
