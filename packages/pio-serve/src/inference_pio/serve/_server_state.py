"""What all requests of one server share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from inference_pio.serve._errors import unavailable
from inference_pio.serve._http_metrics import HttpMetrics
from inference_pio.serve._limits import KeyLimits
from inference_pio.serve._models.pool import ModelPool
from inference_pio.serve._open_requests import OpenRequests
from inference_pio.serve._trace_setup import start_tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference_pio.serve._open_requests import OpenRequest
    from inference_pio.serve._settings import ServeSettings


class ServerState:
    """Models, limits, and whether new requests are still taken. For one event loop.

    Args:
        settings: What the server was told.

    Attributes:
        settings: The same.
        models: The models.
        limits: What each key may have.
        http: What is counted of requests.
        tracing: What traces them; None if nothing does.
        requests: Those that are being answered, of all that cost something.
        draining: Whether new requests are refused, because the server is about to stop.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.models = ModelPool(
            settings.max_waiting, budget=settings.memory_budget, unload_idle_s=settings.unload_idle_s
        )
        self.limits = KeyLimits(settings.max_concurrent_per_key, settings.tokens_per_minute, keys=settings.keys)
        self.http = HttpMetrics()
        self.tracing = start_tracing(settings.otel_endpoint)
        self.requests = OpenRequests()
        self.draining = False

    @property
    def open(self) -> int:
        """How many requests are being answered."""
        return len(self.requests)

    def spend(self, key_id: str, tokens: int) -> None:
        """``key_id`` has used ``tokens``."""
        self.limits.spend(key_id, tokens)
        self.http.spent(self.settings.keys.label(key_id), tokens)

    @contextmanager
    def admitted(self, request: OpenRequest) -> Iterator[None]:
        """A request that costs something is being answered.

        Raises:
            ApiError: 503 while draining; 429 where the key has as much as it may.
        """
        if self.draining:
            error = unavailable("the server is stopping", "stopping")
            error.headers["connection"] = "close"
            raise error
        with self.limits.opened(request.key_id), self.requests.opened(request):
            yield
