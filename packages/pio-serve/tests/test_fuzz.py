"""What the OpenAPI document allows, and what it forbids, against the real server with the real model.

Requests are made by schemathesis from the document alone, and are the same in each run; ``-m slow`` makes many more, in
minutes. A request is cheap whatever it asks for: the context is short, and an answer ends after 0.3 s with what it has.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from inference_pio.core import LLM
from inference_pio.serve import Bounds, KeyRing, PioServer, ServeSettings
from inference_pio.serve._routes import ROUTES

KEY = "test-key-of-the-session"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
"""That valid data is taken is none of them: a document cannot say what fits the model, its context and its template."""
OPERATIONS = [(route.method, route.path.replace(":path}", "}")) for route in ROUTES]
WITH_BODY = [operation for operation, route in zip(OPERATIONS, ROUTES, strict=True) if route.request is not None]
FEW, MANY = 10, 150


@pytest.fixture(scope="module")
def address():
    """Of a server whose answers are short."""
    ready = threading.Event()
    server = PioServer(
        ServeSettings(port=0, keys=KeyRing([KEY]), bounds=Bounds(request_s=0.3)),
        "model",
        lambda: LLM("smollm2-135m-instruct", executor="native", max_model_len=256, max_num_seqs=8, threads=1),
        on_ready=lambda *_: ready.set(),
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    yield server.address
    server.drain()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def document(address):
    """Its document, as schemathesis reads it."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    # Keys are the business of their own tests: here all requests have the right one.
    schema.config.generation.update(with_security_parameters=False)
    return schema


def make_plausible(body):
    """What chance never hits, but must be right before anything beyond it is tried: still as the document has it."""
    body.pop("model", None)
    if isinstance(body.get("max_tokens"), int):
        body["max_tokens"] = 1 + abs(body["max_tokens"]) % 16
    for message in body.get("messages") or ():
        if isinstance(message.get("content"), list):
            for part in message["content"]:
                part |= {"type": "text", "text": part.get("text") or "a"}


def fuzz(document, method, path, mode, count):
    """Send ``count`` requests of one operation; how many had which status.

    Raises:
        FailureGroup: An answer is not as the document says.
    """
    statuses = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(document[path][method].as_strategy(generation_mode=mode), st.integers(0, 3))
    def ask(case, chance):
        if mode is GenerationMode.POSITIVE and chance and isinstance(case.body, dict):
            make_plausible(case.body)
        reply = case.call(headers={"authorization": f"Bearer {KEY}"})
        statuses.append(reply.status_code)
        case.validate_response(reply, checks=CHECKS)

    ask()
    return {status: statuses.count(status) for status in statuses}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_is_allowed(document, method, path):
    """No answer but those that the document describes, and never 500."""
    assert fuzz(document, method, path, GenerationMode.POSITIVE, FEW).keys() <= {200, 400, 404, 429, 503}


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_what_is_forbidden(document, method, path):
    """Refused, each time, as the client's fault."""
    assert fuzz(document, method, path, GenerationMode.NEGATIVE, FEW).keys() <= {400, 404, 415}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_much_of_both(document, method, path, mode):
    """The same with far more requests; some of the allowed ones are answered."""
    found = fuzz(document, method, path, mode, MANY)
    assert mode is GenerationMode.NEGATIVE or 200 in found, found


@pytest.mark.slow
def test_every_bound_and_what_follows_from_replies(address, tmp_path):
    """All checks but that valid data is taken, in the phases that are no chance.

    Each keyword of the document at its bound and beyond it; methods, types and headers that it does not have; requests
    without the key; and what one reply names, asked for by the next request.
    """
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--header",
        f"Authorization: Bearer {KEY}", "--phases", "examples,coverage,stateful", "--exclude-checks",
        "positive_data_acceptance", "--continue-on-failure", "--generation-deterministic", "--max-examples", "20",
        "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # All but the one that it has the document from.
    assert re.search(rf"Tested: +{len(OPERATIONS) - 1}\n", done.stdout), done.stdout
