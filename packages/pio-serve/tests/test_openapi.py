"""The document that describes the server."""

from __future__ import annotations

import openapi_spec_validator
import pytest

from inference_pio.interfaces import InvalidRequestError, SamplingParams
from inference_pio.serve._routes import ROUTES


@pytest.fixture(scope="module")
def document(served):
    status, _, found = served.ask("GET", "/openapi.json")
    assert status == 200
    return found


def test_document_is_valid(document):
    """By a validator that we did not write."""
    openapi_spec_validator.validate(document)


def test_document_has_every_route(document):
    """And no other."""
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path.replace(":path}", "}")) for route in ROUTES}


def test_requests_are_described_with_their_types(document):
    """What the types say is in the schema: names, enumerations, what is required."""
    schema = document["components"]["schemas"]["ChatRequest"]
    assert schema["required"] == ["messages"]
    assert schema["additionalProperties"] is False
    assert {"temperature", "tools", "response_format", "structured_outputs"} <= schema["properties"].keys()


BOUNDED = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "min_tokens", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty",
)  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_are_those_of_the_core(document, name):
    """What lies at one is taken, what lies beyond is not."""
    [schema] = [
        one for one in document["components"]["schemas"]["ChatRequest"]["properties"][name]["anyOf"]
        if one["type"] != "null"
    ]  # fmt: skip
    step = 1 if schema["type"] == "integer" else 0.001
    least, most = schema.get("minimum"), schema.get("maximum")
    for taken in {least, most} - {None}:
        SamplingParams(**{name: taken}, max_tokens=None)
    open_end = schema.get("exclusiveMinimum")
    beyond = [least if least is None else least - step, most if most is None else most + step, open_end]
    assert beyond != [None] * 3
    for refused in (value for value in beyond if value is not None):
        with pytest.raises(InvalidRequestError, match=f"{name} must be"):
            SamplingParams(**{name: refused}, max_tokens=None)


def test_bounds_are_told_and_not_checked_here(served):
    """The core's words say more than those of a type."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "top_p": 0}
    status, _, reply = served.post("/v1/chat/completions", body)
    assert status == 400
    assert reply["error"]["message"].startswith("top_p must be above 0 and at most 1, got 0")


def test_headers_and_types_of_replies_are_described(served, document):
    """As they are sent."""
    for path in ("/", "/dashboard", "/static/chat.js", "/metrics", "/openapi.json", "/version"):
        described = document["paths"].get(path) or document["paths"]["/static/{name}"]
        responses = described["get"]["responses"]
        status, headers, _ = served.ask("GET", path)
        assert status == 200
        assert headers["content-type"].partition(";")[0] in responses["200"]["content"]
        assert [name for name in responses["200"]["headers"] if name not in headers] == []
        _, headers, _ = served.ask("DELETE", path)
        assert {"allow", "x-request-id"} <= headers.keys() & responses["405"]["headers"].keys()
        assert responses["503"]["headers"]["retry-after"]["required"]
    assert "request-id" in document["paths"]["/v1/messages"]["post"]["responses"]["200"]["headers"]


def test_key_is_said_to_be_needed(document):
    """Everywhere but on the open path."""
    assert document["security"] == [{"key": []}]
    without = {
        path for path, methods in document["paths"].items() for one in methods.values() if one.get("security") == []
    }
    assert without == {"/livez"}
