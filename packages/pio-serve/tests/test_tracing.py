"""Traces: one span for each request, with its times and counts, and nothing of what was said."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from inference_pio.interfaces import ConfigError, MissingDependencyError
from inference_pio.serve import KeyRing, ServeSettings
from inference_pio.serve._trace_setup import endpoint_of, start_tracing

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is the extra otel")

SECRET = "Xylophones are green on Thursdays"  # noqa: S105 - what is said, not a password
MODEL = "smollm2-135m-instruct"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def traced(start_server):
    """A server and the spans that it makes, kept in memory."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from inference_pio.serve import _trace_setup
    from inference_pio.serve._tracing import Tracing

    kept = InMemorySpanExporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference_pio.serve._server_state.start_tracing", lambda _: Tracing(SimpleSpanProcessor(kept)))
        running = start_server(keys=KeyRing(["key-of-ada-1 name=ada", "key-without-name"]))
    assert _trace_setup.start_tracing(None) is None

    def spans(count):
        """So many spans; a reply may be read before its span is made."""
        deadline = time.monotonic() + 10
        while len(found := kept.get_finished_spans()) < count:
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        assert len(found) == count
        kept.clear()
        return found

    return running, spans


def chat(running, **more):
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    how = {name: more.pop(name) for name in ("headers", "key") if name in more}
    return running.post("/v1/chat/completions", body | more, **{"key": "key-of-ada-1", **how})


def test_span_tells_times_and_counts(traced):
    """Of the conventions for HTTP and for generative AI, as the reply's usage says them."""
    from opentelemetry.trace import SpanKind, StatusCode

    running, spans = traced
    status, headers, reply = chat(running, seed=7, n=2)
    [span] = spans(1)
    said = dict(span.attributes)
    assert status == 200
    assert (span.name, span.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is None
    assert {name: value for name, value in said.items() if not name.startswith("gen_ai.latency")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "inference_pio",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.model": MODEL,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_k": said["gen_ai.request.top_k"],
        "gen_ai.request.top_p": said["gen_ai.request.top_p"],
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.response.model": MODEL,
        "gen_ai.usage.cache_read.input_tokens": reply["usage"]["prompt_tokens_details"]["cached_tokens"],
        "gen_ai.usage.input_tokens": reply["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": reply["usage"]["completion_tokens"],
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "pio.key": "ada",
        "pio.request_id": headers["x-request-id"],
        "url.scheme": "http",
    }
    queue, first, prefill, decode = (
        said[f"gen_ai.latency.{name}"]
        for name in ("time_in_queue", "time_to_first_token", "time_in_model_prefill", "time_in_model_decode")
    )
    assert first == pytest.approx(queue + prefill)
    assert 0 < first + decode < (span.end_time - span.start_time) / 1e9
    resource = span.resource.attributes
    assert resource["service.name"] == "pio-serve"


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/completions", {"prompt": ["Once", "upon"], "max_tokens": 2}, "text_completion"),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 2}, "chat"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stream": True}, "chat"),
    ],
)
def test_every_endpoint_that_generates_says_so(traced, path, body, operation):
    """Streamed or not, of one prompt or of several."""
    running, spans = traced
    assert running.post(path, body, key="key-without-name")[0] == 200
    [span] = spans(1)
    assert (span.attributes["gen_ai.operation.name"], span.attributes["http.route"]) == (operation, path)
    assert span.attributes["gen_ai.usage.output_tokens"] == 2 * len(span.attributes["gen_ai.response.finish_reasons"])
    assert span.attributes["pio.key"] == "unnamed"


def test_embeddings_are_traced_too(traced):
    """With the tokens that were read, and nothing of a text that was not made."""
    running, spans = traced
    _, _, reply = running.post("/v1/embeddings", {"input": [SECRET, "Hi"]}, key="key-of-ada-1")
    [span] = spans(1)
    assert span.attributes["gen_ai.operation.name"] == "embeddings"
    assert span.attributes["gen_ai.usage.input_tokens"] == reply["usage"]["prompt_tokens"]
    assert "gen_ai.request.temperature" not in span.attributes
    assert span.attributes["gen_ai.usage.output_tokens"] == 0
    text = running.ask("GET", "/metrics", key="key-of-ada-1")[2].decode()
    assert f'pio:key_tokens_total{{key="ada"}} {reply["usage"]["prompt_tokens"]}' in text


def test_span_continues_the_trace_of_the_client(traced):
    """W3C's traceparent, with its tracestate; one that is none, or not sampled, is left aside or followed."""
    running, spans = traced
    chat(running, headers={"traceparent": TRACEPARENT, "tracestate": "a=b"})
    [span] = spans(1)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state["a"] == "b"
    chat(running, headers={"traceparent": "00-zz-yy-01"})
    [span] = spans(1)
    assert span.parent is None
    chat(running, headers={"traceparent": TRACEPARENT[:-2] + "00"})
    chat(running)
    [span] = spans(1)
    assert span.parent is None


def test_no_span_holds_what_was_said(traced):
    """Neither prompt nor answer nor key, nor a model or a path that a client made up."""
    running, spans = traced
    _, _, reply = chat(running, stop=["zebra"])
    chat(running, model="none-such-model")
    running.ask("GET", "/secret/path", key="key-of-ada-1")
    found = spans(3)
    text = "".join(span.to_json() for span in found)
    answer = reply["choices"][0]["message"]["content"]
    for secret in (SECRET, "Xylophones", answer, "zebra", "key-of-ada-1", "none-such-model", "secret"):
        assert secret not in text
    assert [span.attributes["http.route"] for span in found] == ["/v1/chat/completions"] * 2 + ["none"]


def test_errors_are_told_by_their_status(traced):
    """4xx are the client's, and no failure of the server; without a key there is no span, nor for health and pages."""
    from opentelemetry.trace import StatusCode

    running, spans = traced
    chat(running, temperature=-1)
    [span] = spans(1)
    assert (span.attributes["error.type"], span.attributes["http.response.status_code"]) == ("400", 400)
    assert span.status.status_code is StatusCode.UNSET
    chat(running, key="wrong-key-1")
    for path in ("/livez", "/health", "/metrics", "/"):
        assert running.ask("GET", path, key="key-of-ada-1")[0] == 200
    running.model.engine.shutdown()
    assert chat(running)[0] == 503
    [span] = spans(1)
    assert (span.attributes["error.type"], span.status.status_code) == ("503", StatusCode.ERROR)


def test_client_that_goes_away_has_a_span(traced):
    """With what it had used by then."""
    running, spans = traced
    body = json.dumps({"prompt": "Once", "max_tokens": 1900, "ignore_eos": True}).encode()
    with socket.create_connection((running.host, running.port), timeout=10) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key-of-ada-1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        deadline = time.monotonic() + 10
        while not any(request.tokens for request in running.server.state.requests):
            assert time.monotonic() < deadline
            time.sleep(0.005)
    [span] = spans(1)
    assert span.attributes["error.type"] == "client_disconnected"
    assert "http.response.status_code" not in span.attributes
    assert span.attributes["gen_ai.response.finish_reasons"] == ("abort",)
    assert 0 < span.attributes["gen_ai.usage.output_tokens"] < 1900


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans over OTLP/HTTP."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def collector():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.got = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_spans_reach_a_collector(start_server, collector):
    """Over OTLP/HTTP, at the path of the specification, at the latest when the server ends."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    running = start_server(otel_endpoint=f"http://127.0.0.1:{collector.server_port}/")
    assert chat(running, key=None, headers={"traceparent": TRACEPARENT})[0] == 200
    running.server.drain()
    running.thread.join(20)
    assert collector.got
    assert {path for path, _, _ in collector.got} == {"/v1/traces"}
    [spans] = [ExportTraceServiceRequest.FromString(body).resource_spans for _, _, body in collector.got]
    [span] = spans[0].scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("POST /v1/chat/completions", TRACE)
    assert SECRET.encode() not in b"".join(body for _, _, body in collector.got)


def test_collector_that_is_not_there_hurts_nobody(start_server):
    """Requests are answered as ever, and the server ends in time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        running = start_server(otel_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert [chat(running, key=None)[0] for _ in range(3)] == [200] * 3
        started = time.monotonic()
        running.server.drain()
        running.thread.join(20)
        assert not running.thread.is_alive()
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "ftp://localhost", "http://", "http://localhost:99999", "http://a?b", ""]
)
def test_endpoint_must_be_a_url(endpoint):
    """Told before anything is bound."""
    with pytest.raises(ConfigError, match="the OpenTelemetry endpoint"):
        start_tracing(endpoint)


def test_endpoint_holds_no_password():
    """It would stand in lists of processes; the message does not show it."""
    with pytest.raises(ConfigError, match="a name or a password") as caught:
        start_tracing("https://me:hunter22@collector:4318")
    assert "hunter22" not in str(caught.value)


def test_missing_extra_is_an_error_where_it_was_asked_for(monkeypatch, caplog):
    """And a warning where the environment says it to every program."""
    monkeypatch.setattr("inference_pio.serve._trace_setup.can_trace", lambda: False)
    with pytest.raises(MissingDependencyError, match="tracing needs OpenTelemetry"):
        start_tracing("http://localhost:4318")
    assert endpoint_of("http://a:1") == "http://a:1"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    assert endpoint_of(None) is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, and nothing is traced" in caplog.text
    monkeypatch.undo()


def test_environment_says_where_traces_go(monkeypatch):
    """As to any program that uses OpenTelemetry; an option goes before it, an empty variable is none."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    assert endpoint_of(None) == "http://localhost:4318"
    assert endpoint_of("http://other:4318") == "http://other:4318"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    assert endpoint_of(None) is None


def test_off_costs_nothing():
    """A server that traces nothing does not even import what would."""
    code = (
        "import sys\nfrom inference_pio.serve import ServerState, ServeSettings, create_app\n"
        "create_app(ServerState(ServeSettings()))\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]\n"
        "assert 'inference_pio.serve._tracing' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ServeSettings().otel_endpoint is None
