"""What a server counts of its models: what their engines did, over all times that they were loaded, and the loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.core import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.core import EngineMetrics
    from inference_pio.serve._models.pooled_model import PooledModel

_FAMILIES: tuple[tuple[type[Counter | Gauge], str, str, Callable[[PooledModel], float]], ...] = (
    (Counter, "pio:model_loads_total", "Times that the model was loaded.", lambda model: model.loads),
    (Counter, "pio:model_unloads_total", "Times that it was unloaded.", lambda model: model.unloads),
    (Counter, "pio:model_load_failures_total", "Times that loading it failed.", lambda model: model.load_failures),
    (Counter, "pio:model_load_seconds_total", "Seconds that its loads took.", lambda model: model.load_s),
    (Gauge, "pio:model_loaded", "Whether it is loaded.", lambda model: model.served is not None),
    (Gauge, "pio:model_memory_bytes", "Memory set aside for weights and cache.", lambda model: model.nbytes),
    (Gauge, "pio:model_open_requests", "Requests that use it or wait for it.", lambda model: model.leases),
)


def model_metrics(model: PooledModel) -> list[Counter | Gauge]:
    """Its loads and what it takes now, for one model in the order of every other."""
    found: list[Counter | Gauge] = []
    for kind, name, text, value in _FAMILIES:
        metric = kind(name, text)
        if isinstance(metric, Counter):
            metric.add(value(model))
        else:
            metric.value = float(value(model))
        found.append(metric)
    return found


def engine_metrics(model: PooledModel) -> EngineMetrics | None:
    """What its engines have counted; None before it was first loaded. What was counted stays when it is unloaded."""
    if model.served is None:
        return model.past
    return add_up(model.past, model.served.engine.snapshot())


def add_up(past: EngineMetrics | None, now: EngineMetrics) -> EngineMetrics:
    """``now``, which is changed, with what was counted before it added; gauges stay as they are now."""
    if past is None:
        return now
    for before, metric in zip(past, now, strict=True):
        match before, metric:
            case Counter(), Counter():
                for label, value in before.values.items():
                    metric.add(value, label)
            case Histogram(), Histogram():
                metric.counts = [one + other for one, other in zip(before.counts, metric.counts, strict=True)]
                metric.sum += before.sum
    return now
