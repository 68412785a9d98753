"""Traces of requests by OpenTelemetry: one span each, without anything that was said. Needs the extra ``otel``.

A span is made when its request is over, from times that were noted: while a request runs, tracing does nothing. Spans
go out in batches by a thread of their own; a collector that does not answer loses them, and no request waits for it.
"""

from __future__ import annotations

import os
import threading
import time
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inference_pio.interfaces import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.util.types import AttributeValue
    from starlette.types import Scope

    from inference_pio.interfaces import BeamSearchParams, PoolingParams, RequestOutput

    Params = SamplingParams | BeamSearchParams | PoolingParams

CLOSE_S = 3.0
"""For the last spans to go out when the server ends."""
_PARENT = (b"traceparent", b"tracestate")
# Asked every few seconds by machines, or files: they would bury the others.
_UNTRACED = frozenset({"/livez", "/health", "/metrics", "/", "/dashboard", "/static/{name}"})

# Names of the semantic conventions: HTTP's are stable, those of generative AI "in development" and may change, which
# is why they stand here alone. Where they have none yet, the names are vLLM's, or ours.
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
SCHEME = "url.scheme"
ERROR = "error.type"
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
CHOICES = "gen_ai.request.choice.count"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
QUEUE_S = "gen_ai.latency.time_in_queue"
TTFT_S = "gen_ai.latency.time_to_first_token"
PREFILL_S = "gen_ai.latency.time_in_model_prefill"
DECODE_S = "gen_ai.latency.time_in_model_decode"
REQUEST_ID = "pio.request_id"
KEY = "pio.key"
_PARAMETERS = MappingProxyType(
    {
        "max_tokens": "gen_ai.request.max_tokens",
        "temperature": "gen_ai.request.temperature",
        "top_p": "gen_ai.request.top_p",
        "top_k": "gen_ai.request.top_k",
        "seed": "gen_ai.request.seed",
        "presence_penalty": "gen_ai.request.presence_penalty",
        "frequency_penalty": "gen_ai.request.frequency_penalty",
    }
)
_OPERATIONS = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/responses": "chat",
        "/v1/messages": "chat",
        "/v1/completions": "text_completion",
        "/v1/embeddings": "embeddings",
    }
)


class Tracing:
    """Makes spans of requests.

    Args:
        processor: Takes them.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("inference_pio.serve", version("pio-serve"))
        self._propagator = TraceContextTextMapPropagator()

    def begin(self) -> RequestTrace:
        """A request has come."""
        return RequestTrace()

    def end(self, trace: RequestTrace, scope: Scope, *, route: str, status: int, request_id: str, key: str) -> None:
        """It is over: make its span, continuing the trace that its headers name.

        Args:
            trace: What was noted.
            scope: Of the request.
            route: As the table spells it.
            status: Of the reply; 0 if there was none.
            request_id: Its id.
            key: What metrics call its key.
        """
        # Who has no key writes nothing into the traces either.
        if route in _UNTRACED or status == 401:
            return
        carrier = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in _PARENT
        }
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=trace.started_ns,
            attributes={
                METHOD: scope["method"],
                ROUTE: route,
                SCHEME: scope["scheme"],
                REQUEST_ID: request_id,
                KEY: key,
                **({OPERATION: _OPERATIONS[route]} if route in _OPERATIONS else {}),
                **trace.attributes,
            },
        )
        if status:
            span.set_attribute(STATUS, status)
        if not status or status >= 400:
            span.set_attribute(ERROR, str(status) if status else "client_disconnected")
        if status >= 500 or trace.failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        """Send what is there, within a bound; harmless when called twice."""
        # A collector that hangs would hold the thread for longer than anyone waits for the server's end.
        last = threading.Thread(target=self._provider.shutdown, name="pio-traces", daemon=True)
        last.start()
        last.join(CLOSE_S)


class RequestTrace:
    """What is noted of one request until it is over.

    Attributes:
        started_ns: When it came, in nanoseconds since 1970.
        attributes: What its span will say.
        failed: Whether the engine failed on it, also where its status was sent before.
    """

    def __init__(self) -> None:
        self.started_ns = time.time_ns()
        self.attributes: dict[str, AttributeValue] = {}
        self.failed = False

    def computed(self, model: str, params: Params, outputs: Sequence[RequestOutput]) -> None:
        """Note what the engine did for it: counts, times and parameters, never what was said.

        Args:
            model: What it was asked of.
            params: How; several prompts of one call have the same.
            outputs: What came of that; fewer where some were refused.
        """
        reasons = [one.finish_reason.value for output in outputs for one in output.outputs if one.finish_reason]
        self.failed = any(output.error is not None for output in outputs)
        self.attributes |= {
            PROVIDER: "inference_pio",
            REQUEST_MODEL: model,
            RESPONSE_MODEL: model,
            FINISH_REASONS: reasons,
            INPUT_TOKENS: sum(len(output.prompt_token_ids) for output in outputs),
            OUTPUT_TOKENS: sum(len(one.token_ids) for output in outputs for one in output.outputs),
            **_parameters(params),
        }
        timed = [output.metrics for output in outputs if output.metrics is not None]
        if timed:  # of several prompts, when the first of them began and the last was there
            self.attributes |= {
                CACHED_TOKENS: sum(metrics.cached_tokens for metrics in timed),
                QUEUE_S: min(metrics.queue_s for metrics in timed),
                TTFT_S: min(metrics.ttft_s for metrics in timed),
                PREFILL_S: max(metrics.prefill_s for metrics in timed),
                DECODE_S: max(metrics.decode_s for metrics in timed),
            }


def exporting_to(endpoint: str) -> Tracing:
    """Traces that go to a collector over OTLP/HTTP.

    Args:
        endpoint: Its base, such as ``http://localhost:4318``; ``/v1/traces`` is added, as the specification says.
    """
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))


def _parameters(params: Params) -> Mapping[str, AttributeValue]:
    if not isinstance(params, SamplingParams):
        return {}
    given = {name: getattr(params, field) for field, name in _PARAMETERS.items()}
    return {name: value for name, value in given.items() if value is not None} | {CHOICES: params.n}


def _resource() -> Resource:
    """Who makes the spans: what the environment says, or our name."""
    said = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = {} if said else {"service.name": "pio-serve"}
    return Resource.create({"service.version": version("pio-serve"), **name})
