"""The document that describes the server."""

from __future__ import annotations

import openapi_spec_validator
import pytest

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


def test_key_is_said_to_be_needed(document):
    """Everywhere but on the open path."""
    assert document["security"] == [{"key": []}]
    without = {
        path for path, methods in document["paths"].items() for one in methods.values() if one.get("security") == []
    }
    assert without == {"/livez"}
