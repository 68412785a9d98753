"""The small endpoints: models, tokens, health."""

from __future__ import annotations

import pytest


def test_serves_the_default_model_by_name(served):
    """The list and the card agree."""
    status, _, listed = served.ask("GET", "/v1/models")
    assert status == 200
    [card] = listed["data"]
    assert card["id"] == "smollm2-135m-instruct"
    assert card["object"] == "model"
    assert card["max_model_len"] == 2048
    assert served.ask("GET", f"/v1/models/{card['id']}")[2] == card


def test_model_that_is_not_there_is_404(served):
    """By path and by request, with the code that clients look for."""
    for status, _, reply in (
        served.ask("GET", "/v1/models/gpt-9"),
        served.post("/v1/completions", {"model": "gpt-9", "prompt": "a"}),
        served.post("/tokenize", {"model": "gpt-9", "prompt": "a"}),
    ):
        assert status == 404
        assert reply["error"]["code"] == "model_not_found"
        assert reply["error"]["param"] == "model"
        assert "gpt-9" in reply["error"]["message"]


def test_answers_a_conversation(served):
    """Whole reply, greedy, with usage."""
    reply = served.chat("Name the capital of France.", max_tokens=16)
    [choice] = reply["choices"]
    assert "Paris" in choice["message"]["content"]
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


@pytest.mark.parametrize("path", ["/health", "/livez"])
def test_says_that_it_is_well(served, path):
    """All is."""
    assert served.ask("GET", path)[::2] == (200, {"status": "ok"})


def test_health_asks_the_engine(start_server):
    """An engine whose thread has ended is found out; the process still lives."""
    running = start_server()
    assert running.ask("GET", "/health", key=None)[0] == 200
    running.model.engine.shutdown()
    status, headers, reply = running.ask("GET", "/health", key=None)
    assert status == 503
    assert reply["error"]["code"] == "engine_failed"
    assert int(headers["retry-after"]) >= 1
    assert running.ask("GET", "/livez", key=None)[0] == 200


def test_says_its_version(served):
    """That of the distribution."""
    from importlib.metadata import version

    assert served.ask("GET", "/version")[2] == {"version": version("pio-serve")}
