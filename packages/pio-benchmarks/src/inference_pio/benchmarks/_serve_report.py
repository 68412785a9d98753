"""The figures of a load test: vLLM's block for people, measurements for records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from inference_pio.benchmarks._record import Measurement
from inference_pio.benchmarks._serve_metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inference_pio.benchmarks._record import Better
    from inference_pio.benchmarks._serve_load import Load
    from inference_pio.benchmarks._serve_metrics import ServeMetrics
    from inference_pio.benchmarks._serve_timeline import Timeline

_WIDTH = 50


def result_block(metrics: ServeMetrics, load: Load, shown: Sequence[str]) -> str:
    """The block that vLLM's serving benchmark ends with, in its words.

    Args:
        metrics: The figures.
        load: What was pressed.
        shown: Which distributions, by the names of :data:`METRICS`.
    """
    lines = [f"{' Serving Benchmark Result ':=^{_WIDTH}}"]
    lines += [_line(name, value) for name, value in _totals(metrics, load)]
    for name in shown:
        short, heading = METRICS[name]
        found = metrics.distributions[name]
        lines += [
            f"{heading:-^{_WIDTH}}",
            _line(f"Mean {short} (ms):", found.mean),
            _line(f"Median {short} (ms):", found.median),
            *(_line(f"P{percent:g} {short} (ms):", value) for percent, value in found.percentiles.items()),
        ]
    return "\n".join([*lines, "=" * _WIDTH])


def to_measurements(metrics: ServeMetrics, timelines: Sequence[Timeline] = ()) -> list[Measurement]:
    """All figures; with ``timelines`` also those of each completed request, in their order."""
    found = [
        _single("requests completed", "requests", metrics.completed, "neither"),
        _single("requests failed", "requests", metrics.failed, "lower"),
        _single("duration", "s", metrics.duration_s, "neither"),
        _single("input tokens", "tokens", metrics.input_tokens, "neither"),
        _single("output tokens", "tokens", metrics.output_tokens, "neither"),
        _single("request throughput", "requests/s", metrics.request_throughput, "higher"),
        _single("output throughput", "tokens/s", metrics.output_throughput, "higher"),
        _single("total throughput", "tokens/s", metrics.total_throughput, "higher"),
        _single("peak output throughput", "tokens/s", metrics.peak_output_throughput, "higher"),
        _single("peak concurrency", "requests", metrics.peak_concurrency, "neither"),
    ]
    if metrics.goodput is not None:
        found.append(_single("goodput", "requests/s", metrics.goodput, "higher"))
    for name, distribution in metrics.distributions.items():
        if distribution.count:
            short = METRICS[name][0]
            found += [
                _single(f"mean {short}", "ms", distribution.mean, "lower"),
                _single(f"median {short}", "ms", distribution.median, "lower"),
                _single(f"std {short}", "ms", distribution.std, "neither"),
                *(
                    _single(f"p{percent:g} {short}", "ms", value, "lower")
                    for percent, value in distribution.percentiles.items()
                ),
            ]
    return found + list(_each(timelines))


def _each(timelines: Sequence[Timeline]) -> Iterator[Measurement]:
    done = [each for each in timelines if each.state == "completed"]
    if done:
        yield Measurement("TTFT of each request", "ms", tuple(1e3 * each.ttft for each in done), "neither")
        yield Measurement("E2EL of each request", "ms", tuple(1e3 * each.latency for each in done), "neither")
        yield Measurement("tokens of each answer", "tokens", tuple(float(each.length) for each in done), "neither")


def _totals(metrics: ServeMetrics, load: Load) -> Iterator[tuple[str, float]]:
    yield "Successful requests:", metrics.completed
    yield "Failed requests:", metrics.failed
    if load.max_concurrency is not None:
        yield "Maximum request concurrency:", load.max_concurrency
    if not math.isinf(load.request_rate):
        yield "Request rate configured (RPS):", float(load.request_rate)
    yield "Benchmark duration (s):", metrics.duration_s
    yield "Total input tokens:", metrics.input_tokens
    yield "Total generated tokens:", metrics.output_tokens
    yield "Request throughput (req/s):", metrics.request_throughput
    if metrics.goodput is not None:
        yield "Request goodput (req/s):", metrics.goodput
    yield "Output token throughput (tok/s):", metrics.output_throughput
    yield "Peak output token throughput (tok/s):", metrics.peak_output_throughput
    yield "Peak concurrent requests:", float(metrics.peak_concurrency)
    yield "Total token throughput (tok/s):", metrics.total_throughput


def _line(name: str, value: float) -> str:
    return f"{name:<40} {value}" if isinstance(value, int) else f"{name:<40} {value:.2f}"


def _single(name: str, unit: str, value: float, better: Better) -> Measurement:
    return Measurement(name, unit, (float(value),), better)
