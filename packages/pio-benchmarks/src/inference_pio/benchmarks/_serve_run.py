"""What ``pio bench serve`` does with its options."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.benchmarks._gen_report import make_record, now
from inference_pio.benchmarks._quiet import check_quiet
from inference_pio.benchmarks._record import record_to_json, write_record
from inference_pio.benchmarks._run import termination_as_exit
from inference_pio.benchmarks._serve_dataset import check_endpoint, choose_prompts, read_dataset
from inference_pio.benchmarks._serve_load import Load
from inference_pio.benchmarks._serve_metrics import measure_serving
from inference_pio.benchmarks._serve_options import (
    parse_extra_body,
    parse_metrics,
    parse_objectives,
    parse_percentiles,
    parse_positive,
)
from inference_pio.benchmarks._serve_prompts import parse_length
from inference_pio.benchmarks._serve_report import result_block, to_measurements
from inference_pio.benchmarks._serve_session import Plan, doubts
from inference_pio.benchmarks._serve_targets import press, press_both
from inference_pio.benchmarks._text import note, transient, write, write_json
from inference_pio.interfaces import InvalidRequestError, PioError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import numpy as np

    from inference_pio.benchmarks._fields import Scalar
    from inference_pio.benchmarks._record import Measurement
    from inference_pio.benchmarks._serve_load import LoadRun
    from inference_pio.benchmarks._serve_options import ServeOptions
    from inference_pio.benchmarks._serve_overhead import Overhead
    from inference_pio.benchmarks._serve_prompts import Prompt

_DEFAULT_LEN = "128"
_PROMPTS, _OVERHEAD_PROMPTS = 100, 20
_ERRORS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Outset:
    """What is known before the first request."""

    date: datetime
    seed: int
    warnings: list[str]


def run_serve(options: ServeOptions) -> None:
    """Measure and report.

    Raises:
        PioError: An option is wrong, the target cannot be used, or no request was answered.
        KeyboardInterrupt: It was stopped by Ctrl-C, after the report of what there was.
    """
    import numpy as np

    _check_targets(options)
    parse_extra_body(options.extra_body)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    generator = np.random.default_rng(seed)
    plan = make_plan(options, generator)
    parsed = _parse_reporting(options)
    outset = _look_around(options, seed)
    if options.overhead:
        with _line_erased(), termination_as_exit():
            model, overhead = asyncio.run(press_both(options, plan, generator))
        _report_overhead(options, plan, outset, model, overhead)
        return
    with _line_erased():
        allow_open_files(plan.num_prompts)
        model, run = asyncio.run(press(options, plan, generator))
    _report(options, plan, outset, parsed, model, run)
    if run.stopped:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _line_erased() -> Iterator[None]:
    """Erases the line of progress at the end, so that a report or an error begins a line of its own."""
    try:
        yield
    finally:
        transient("")


def allow_open_files(count: int) -> None:
    """Let this process hold ``count`` connections at once, as far as the system allows it without asking anyone."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        highest = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, highest), hard))


def make_plan(options: ServeOptions, generator: np.random.Generator) -> Plan:
    """The plan that the options say.

    Raises:
        PioError: One of them is wrong, or the dataset cannot be read.
    """
    load = Load(
        parse_positive("--request-rate", options.request_rate),
        parse_positive("--burstiness", options.burstiness),
        options.max_concurrency,
    )
    said_len = None if options.output_len is None else parse_length("--output-len", options.output_len)
    output_len = said_len or parse_length("--output-len", _DEFAULT_LEN)
    dataset: tuple[Prompt, ...] = ()
    if options.dataset is not None:
        if said_len is not None and said_len.low != said_len.high:
            raise InvalidRequestError(f"--output-len {said_len}: a dataset takes one length", hint="or none at all")
        prompts = read_dataset(Path(options.dataset), None if said_len is None else said_len.low)
        check_endpoint(prompts, options.endpoint)
        dataset = tuple(choose_prompts(prompts, options.num_prompts, generator))
    return Plan(
        num_prompts=len(dataset) or options.num_prompts or (_OVERHEAD_PROMPTS if options.overhead else _PROMPTS),
        input_len=parse_length("--input-len", options.input_len),
        output_len=output_len,
        shared_prefix_len=options.shared_prefix_len,
        dataset=dataset,
        warmups=options.num_warmups,
        load=load,
        ttft_until=options.ttft_until,
    )


def _check_targets(options: ServeOptions) -> None:
    named = {"--base-url": options.base_url, "--in-process": options.in_process, "--overhead": options.overhead}
    given = [name for name, value in named.items() if value]
    if len(given) > 1:
        raise InvalidRequestError(f"{' and '.join(given)} exclude each other", hint="give one of them")
    if options.in_process is not None and options.model is not None:
        raise InvalidRequestError("--in-process names the model already", hint="leave out --model")
    if options.overhead and options.endpoint == "chat":
        raise InvalidRequestError("--overhead measures completions", hint="leave out --endpoint chat")
    for name, value in (("--dataset", options.dataset), ("--goodput", options.goodput)):
        if options.overhead and value:
            raise InvalidRequestError(f"--overhead takes no {name}", hint=f"leave out {name}")


def _parse_reporting(options: ServeOptions) -> tuple[tuple[str, ...], tuple[float, ...], dict[str, float]]:
    return (
        parse_metrics(options.percentile_metrics),
        parse_percentiles(options.metric_percentiles),
        parse_objectives(options.goodput),
    )


def _look_around(options: ServeOptions, seed: int) -> _Outset:
    date = now()
    activity = check_quiet(strict=options.strict)
    if not activity.quiet:
        note(f"warning: {activity.describe(names=True)}")
    return _Outset(date, seed, [] if activity.quiet else [activity.describe(names=False)])


def _report(
    options: ServeOptions,
    plan: Plan,
    outset: _Outset,
    parsed: tuple[tuple[str, ...], tuple[float, ...], dict[str, float]],
    model: str,
    run: LoadRun,
) -> None:
    shown, percentiles, objectives = parsed
    metrics = measure_serving(run.timelines, run.duration_s, percentiles=percentiles, objectives=objectives)
    _tell_failures(run)
    if metrics.failed and not metrics.completed:
        first = next(each.error for each in run.timelines if each.state == "failed")
        raise PioError(f"none of {metrics.failed} requests was answered: {first}")
    measurements = to_measurements(metrics, run.timelines if options.save_detailed else ())
    found = doubts(run, plan.num_prompts, own_cpu=options.in_process is None)
    for doubt in found:
        note(f"warning: {doubt}")
    if options.in_process is None and metrics.completed:
        chunks = sum(len(each.chunks) for each in run.timelines)
        measurements.append(_client_cpu(run, chunks))
    settings = _settings(options, plan, outset, model)
    _keep(options, settings, measurements, outset, [*outset.warnings, *found])
    if not options.as_json:
        write(result_block(metrics, plan.load, shown))


def _client_cpu(run: LoadRun, chunks: int) -> Measurement:
    from inference_pio.benchmarks._record import Measurement

    return Measurement("CPU of the load generator per chunk", "us", (1e6 * run.cpu_s / max(chunks, 1),), "neither")


def _report_overhead(options: ServeOptions, plan: Plan, outset: _Outset, model: str, overhead: Overhead) -> None:
    from inference_pio.benchmarks._serve_overhead import overhead_block, overhead_measurements

    settings = _settings(options, plan, outset, model)
    _keep(options, settings, overhead_measurements(overhead), outset, outset.warnings)
    if not options.as_json:
        write(overhead_block(overhead))


def _settings(options: ServeOptions, plan: Plan, outset: _Outset, model: str) -> dict[str, Scalar]:
    """What the record says of the run; neither addresses nor keys."""
    target = "overhead" if options.overhead else "http" if options.in_process is None else "in-process"
    made = options.dataset is None
    return {
        "model": model,
        "target": target,
        "endpoint": options.endpoint,
        "num_prompts": plan.num_prompts,
        "request_rate": f"{plan.load.request_rate:g}",
        "burstiness": f"{plan.load.burstiness:g}",
        "max_concurrency": plan.load.max_concurrency,
        "dataset": None if options.dataset is None else Path(options.dataset).name,
        "input_len": str(plan.input_len) if made else None,
        "output_len": str(plan.output_len) if made or options.output_len is not None else None,
        "shared_prefix_len": plan.shared_prefix_len,
        "num_warmups": plan.warmups,
        "ignore_eos": options.goes_to_eos,
        "temperature": options.temperature,
        "ttft_until": plan.ttft_until,
        "seed": outset.seed,
    }


def _keep(
    options: ServeOptions,
    settings: dict[str, Scalar],
    measurements: Sequence[Measurement],
    outset: _Outset,
    warnings: Sequence[str],
) -> None:
    """Write the record where it is wanted."""
    if options.output is None and not options.as_json:
        return
    benchmark = "serve-overhead" if options.overhead else "serve"
    record = make_record(benchmark, settings, measurements, limits=(), date=outset.date, warnings=warnings)
    if options.output is not None:
        write_record(record, Path(options.output))
    if options.as_json:
        write_json(record_to_json(record))


def _tell_failures(run: LoadRun) -> None:
    """The different reasons for which requests failed, the commonest first."""
    reasons = Counter(each.error for each in run.timelines if each.state == "failed")
    for reason, count in reasons.most_common(_ERRORS_SHOWN):
        note(f"{count} request{'s' * (count > 1)} failed: {reason}")
