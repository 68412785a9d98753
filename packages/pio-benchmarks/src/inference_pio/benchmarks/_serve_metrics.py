"""What vLLM's serving benchmark reports, by its definitions.

Of each completed request: TTFT is from sending to the first chunk; E2EL to the last chunk; TPOT is ``(E2EL - TTFT) /
(tokens - 1)`` and left out for answers of one token; ITL are the gaps between chunks, of all requests together. Means,
medians, population standard deviations and linearly interpolated percentiles are NumPy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inference_pio.benchmarks._serve_timeline import Timeline

OBJECTIVES = ("ttft", "tpot", "e2el")
"""What goodput can hold requests to."""

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
}
"""Abbreviation and heading of each distribution."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values in milliseconds, summed up; all zero where there are none.

    Attributes:
        mean: Their mean.
        median: Their median.
        std: Their population standard deviation.
        percentiles: By percent.
        count: How many there are.
    """

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]
    count: int


@dataclass(frozen=True, slots=True)
class ServeMetrics:
    """A load test in numbers.

    Attributes:
        completed: Requests that were answered.
        failed: Requests that were not.
        duration_s: From the first request to the end of the last.
        input_tokens: Tokens of the completed requests' prompts.
        output_tokens: Tokens of their answers.
        goodput: Requests per second that met all objectives; None without any.
        peak_output_throughput: Most chunks within one second, counted in whole seconds from the first request.
        peak_concurrency: Most completed requests that ran at one time.
        distributions: By the names of :data:`METRICS`.
    """

    completed: int
    failed: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    goodput: float | None
    peak_output_throughput: float
    peak_concurrency: int
    distributions: Mapping[str, Distribution]

    @property
    def request_throughput(self) -> float:
        """Requests per second."""
        return self.completed / self.duration_s

    @property
    def output_throughput(self) -> float:
        """Tokens of answers per second."""
        return self.output_tokens / self.duration_s

    @property
    def total_throughput(self) -> float:
        """Tokens of prompts and answers per second."""
        return (self.input_tokens + self.output_tokens) / self.duration_s


def measure_serving(
    timelines: Sequence[Timeline],
    duration_s: float,
    *,
    percentiles: Sequence[float] = (99.0,),
    objectives: Mapping[str, float] | None = None,
) -> ServeMetrics:
    """The numbers of a load test.

    Args:
        timelines: Of the requests that have ended; others are left out.
        duration_s: How long it took.
        percentiles: Which to report, in percent.
        objectives: What a good request keeps within, in milliseconds, by the names of :data:`OBJECTIVES`.

    Raises:
        ValueError: The duration is not positive.
    """
    if not duration_s > 0:
        raise ValueError(f"the duration must be positive, not {duration_s}")
    done = [each for each in timelines if each.state == "completed"]
    values = {
        "ttft": [each.ttft for each in done],
        "tpot": [_tpot(each) for each in done if each.length > 1],
        "itl": [gap for each in done for gap in each.gaps],
        "e2el": [each.latency for each in done],
        "client_queue_time": [each.queued for each in done],
    }
    return ServeMetrics(
        completed=len(done),
        failed=sum(each.state == "failed" for each in timelines),
        duration_s=duration_s,
        input_tokens=sum(each.prompt_tokens or 0 for each in done),
        output_tokens=sum(each.length for each in done),
        goodput=sum(_is_good(each, objectives) for each in done) / duration_s if objectives else None,
        peak_output_throughput=_peak_throughput(done),
        peak_concurrency=_peak_concurrency(done),
        distributions={name: _distribution(each, percentiles) for name, each in values.items()},
    )


def _tpot(timeline: Timeline) -> float:
    """Seconds per token after the first; 0 for an answer of one, which meets any objective."""
    return (timeline.latency - timeline.ttft) / (timeline.length - 1) if timeline.length > 1 else 0.0


def _is_good(timeline: Timeline, objectives: Mapping[str, float]) -> bool:
    spent = {"ttft": timeline.ttft, "tpot": _tpot(timeline), "e2el": timeline.latency}
    return all(spent[name] <= limit / 1e3 for name, limit in objectives.items())


def _distribution(seconds: Sequence[float], percentiles: Iterable[float]) -> Distribution:
    import numpy as np

    values = np.array(seconds or [0.0]) * 1e3
    return Distribution(
        mean=float(np.mean(values)),
        median=float(np.median(values)),
        std=float(np.std(values)),
        percentiles={each: float(np.percentile(values, each)) for each in percentiles},
        count=len(seconds),
    )


def _peak_throughput(done: Sequence[Timeline]) -> float:
    begin = min((each.start for each in done), default=0.0)
    seconds: dict[int, int] = {}
    for timeline in done:
        for at in timeline.chunks:
            second = math.floor(at - begin)
            seconds[second] = seconds.get(second, 0) + 1
    return float(max(seconds.values(), default=0))


def _peak_concurrency(done: Sequence[Timeline]) -> int:
    # One that ends when another begins does not overlap it: at equal times departures sort first.
    events = sorted([(each.start, 1) for each in done] + [(each.start + each.latency, -1) for each in done])
    running = peak = 0
    for _, change in events:
        running += change
        peak = max(peak, running)
    return peak
