"""When things happened to a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.interfaces import RequestMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStamps:
    """Points in time of a request, in seconds of ``time.perf_counter``.

    Attributes:
        arrived: It was handed in.
        scheduled: The first step began to work on it; None before its first token.
        first_token: Its first token came; None before.
        last_token: Its latest token came; None before the first.
    """

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @classmethod
    def at(cls, arrived: float, metrics: RequestMetrics | None) -> RequestStamps:
        """The stamps of a request that arrived then and spent its time like that since."""
        if metrics is None:
            return cls(arrived=arrived)
        first = arrived + metrics.ttft_s
        return cls(
            arrived=arrived,
            scheduled=arrived + metrics.queue_s,
            first_token=first,
            last_token=first + metrics.decode_s,
        )
