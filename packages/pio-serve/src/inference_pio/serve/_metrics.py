"""``GET /metrics``: what the engines and the server count, in Prometheus' text format 0.0.4.

Names are vLLM's with the prefix ``pio:``, so that its dashboards need one replacement. The text is written here and not
by Prometheus' client library: that costs 90 ms of start-up, and its registry would count everything a second time. What
its parser makes of the text is tested.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from starlette.responses import Response

from inference_pio.core import Counter, Gauge, Histogram
from inference_pio.interfaces import FinishReason
from inference_pio.serve._models.metrics import engine_metrics, model_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from inference_pio.serve._call import Call
    from inference_pio.serve._http_metrics import HttpMetrics
    from inference_pio.serve._models.served import ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


async def metrics(call: Call) -> Response:
    """What every engine has counted since its start, and the server; waits for none of them."""
    pool = call.server.models
    counted = [(model.name, engine_metrics(model)) for model in pool.named()]
    lines = [
        *_info(pool.all()),
        *exposition([(name, metrics) for name, metrics in counted if metrics is not None]),
        *exposition([(model.name, model_metrics(model)) for model in pool.named()]),
        *http_exposition(call.server.http),
    ]
    return Response("".join(f"{line}\n" for line in lines), headers={"content-type": CONTENT_TYPE})


def exposition(engines: Sequence[tuple[str, Iterable[Counter | Gauge | Histogram]]]) -> Iterator[str]:
    """Lines of the text, without their ends: a family at a time, within it a model at a time.

    Args:
        engines: Name of a model, and what was counted of it: of each the same, in the same order.
    """
    for family in zip(*(metrics for _, metrics in engines), strict=True):
        yield from _head(family[0])
        for (name, _), metric in zip(engines, family, strict=True):
            yield from _samples(metric, {"model_name": name})


def http_exposition(http: HttpMetrics) -> Iterator[str]:
    """The same of what was counted of requests."""
    for first, family in http.families():
        yield from _head(first)
        for labels, metric in family:
            yield from _samples(metric, labels)


def _info(models: Sequence[ServedModel]) -> Iterator[str]:
    if models:
        yield "# HELP pio:cache_config_info What the engine was set up with."
        yield "# TYPE pio:cache_config_info gauge"
    for model in models:
        llm = model.llm
        labels = {
            "model_name": model.name,
            "executor": llm.executor,
            "device": llm.device,
            "dtype": llm.dtype,
            "max_model_len": str(llm.max_model_len),
            "block_size": str(llm.page_size),
            "num_gpu_blocks": str(llm.cache_groups[0].num_pages),  # vLLM's name for pages, whatever they lie on
        }
        yield _line("pio:cache_config_info", labels, 1)


def _head(metric: Counter | Gauge | Histogram) -> Iterator[str]:
    text = metric.help.replace("\\", "\\\\").replace("\n", "\\n")
    yield f"# HELP {metric.name} {text}"
    yield f"# TYPE {metric.name} {type(metric).__name__.lower()}"


def _samples(metric: Counter | Gauge | Histogram, labels: dict[str, str]) -> Iterator[str]:
    match metric:
        case Gauge():
            yield _line(metric.name, labels, metric.value)
        case Counter(label=None):
            yield _line(metric.name, labels, metric.total)
        case Counter(label=str(label)):
            # What has not happened yet is 0: a rate over the first time that it does would miss it otherwise.
            known = {reason.value: 0.0 for reason in FinishReason} if label == "finished_reason" else {}
            for key, value in (known | metric.values).items():
                yield _line(metric.name, {**labels, label: key}, value)
        case Histogram():
            # The sum of what is written, not the histogram's own count: its intervals must agree with each other.
            ends = [*(_number(bound) for bound in metric.bounds), "+Inf"]
            total = 0
            for end, total in zip(ends, itertools.accumulate(metric.counts), strict=True):
                yield _line(f"{metric.name}_bucket", {**labels, "le": end}, total)
            yield _line(f"{metric.name}_sum", labels, metric.sum)
            yield _line(f"{metric.name}_count", labels, total)


def _line(name: str, labels: dict[str, str], value: float) -> str:
    inner = ",".join(f'{key}="{text.translate(_ESCAPED)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return repr(int(value)) if float(value).is_integer() else repr(float(value))
