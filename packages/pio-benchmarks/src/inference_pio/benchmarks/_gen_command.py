"""``pio bench gen``: how fast a model reads and writes, as llama-bench's pp and tg."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from inference_pio.benchmarks._fields import Scalar
    from inference_pio.benchmarks._gen_case import Case
    from inference_pio.benchmarks._limits import Limits
    from inference_pio.benchmarks._record import Measurement
    from inference_pio.core import Checkpoint


@click.command("gen")
@click.argument("model", required=False)
@click.option("--prompt", default="512", show_default=True, metavar="N,...", help="Tokens to read; 0 for none.")
@click.option("--gen", "generated", default=128, show_default=True, metavar="N", help="Steps to write; 0 for none.")
@click.option("--batch", default="1", show_default=True, metavar="N,...", help="Sequences that write at once.")
@click.option(
    "--context", "--depth", default="0", show_default=True, metavar="N,...", help="Tokens in the cache before."
)
@click.option("--threads", metavar="N,...", help="Numbers of threads. [default: all cores]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Measurements of each case.")
@click.option("--executor", default="auto", show_default=True, help="auto, native or torch.")
@click.option("--dtype", default="auto", show_default=True, help="Of the weights, where the executor has a choice.")
@click.option("--all-logits", is_flag=True, help="Compute every logit, not those alone that greedy decoding asks for.")
@click.option("--shape", metavar="NAME", help="Random weights in the shape of qwen3-0.6b, instead of MODEL.")
@click.option("--strict", is_flag=True, help="Refuse if other programs are running.")
@click.option("-o", "--output", metavar="FILE", help="Write the record there.")
@click.option("--json", "as_json", is_flag=True, help="Write the record to standard output as JSON.")
def gen(
    model: str | None,
    prompt: str,
    generated: int,
    batch: str,
    context: str,
    threads: str | None,
    rounds: int,
    executor: str,
    dtype: str,
    all_logits: bool,
    shape: str | None,
    strict: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Measure how fast MODEL (by default that of pio run) reads a prompt and writes tokens.

    No engine takes part: random tokens go straight to the executor, as llama-bench does.
    """
    from pathlib import Path

    from inference_pio.benchmarks._gen_report import find_checkpoint, make_record, now
    from inference_pio.benchmarks._limits import measure_limits
    from inference_pio.benchmarks._machine import default_threads, describe_machine
    from inference_pio.benchmarks._options import parse_counts
    from inference_pio.benchmarks._quiet import check_quiet
    from inference_pio.benchmarks._record import record_to_json, write_record
    from inference_pio.benchmarks._text import note, transient, write_json

    cases = plan_cases(_counts("--prompt", prompt), generated, _counts("--batch", batch), _counts("--context", context))
    counts = [default_threads(describe_machine())] if threads is None else parse_counts("--threads", threads)
    name = choose_model(model, shape, transient)
    checkpoint = find_checkpoint(name)
    date = now()
    activity = check_quiet(strict=strict)
    warnings = [] if activity.quiet else [activity.describe(names=False)]
    if not activity.quiet:
        note(f"warning: {activity.describe(names=True)}")
    transient("measuring the machine")
    limits = measure_limits(counts)
    measurements: list[Measurement] = []
    for number in counts:
        measurements += _measure(name, checkpoint, cases, number, rounds, executor, dtype, all_logits=all_logits)
    transient("")
    settings: dict[str, Scalar] = {
        "model": shape or checkpoint.name,
        "executor": executor,
        "dtype": dtype,
        "all_logits": all_logits,
        "rounds": rounds,
    }
    record = make_record("gen", settings, measurements, limits=limits, date=date, warnings=warnings)
    if output is not None:
        write_record(record, Path(output))
    if as_json:
        write_json(record_to_json(record))
    else:
        _show(measurements, limits)


def plan_cases(prompts: Sequence[int], generated: int, batches: Sequence[int], contexts: Sequence[int]) -> list[Case]:
    """Prefill of each prompt and decode of each batch, at each context.

    Raises:
        InvalidRequestError: There is nothing to measure.
    """
    from inference_pio.benchmarks._gen_case import Case
    from inference_pio.interfaces import InvalidRequestError

    cases = [Case(phase="prefill", tokens=tokens, context=past) for past in contexts for tokens in prompts if tokens]
    if generated > 0:
        sizes = [batch for batch in batches if batch]
        cases += [
            Case(phase="decode", tokens=generated, batch=size, context=past) for past in contexts for size in sizes
        ]
    if not cases:
        raise InvalidRequestError("nothing to measure", hint="give --prompt or --gen a number above 0")
    return cases


def choose_model(model: str | None, shape: str | None, progress: Callable[[str], None]) -> str:
    """What to load: ``model``, the random model of ``shape``, or the default model.

    Raises:
        InvalidRequestError: Both are given, or there is no such shape.
    """
    from inference_pio.benchmarks._gen_random_model import random_model
    from inference_pio.benchmarks._gen_report import benchmark_cache, default_model
    from inference_pio.interfaces import InvalidRequestError

    if shape is None:
        return model if model is not None else default_model()
    if model is not None:
        raise InvalidRequestError(f"both MODEL {model!r} and --shape {shape!r} are given", hint="give one of them")
    path: Path = random_model(shape, benchmark_cache(), progress)
    return str(path)


def _counts(option: str, text: str) -> list[int]:
    """Integers from 0 on between commas."""
    from inference_pio.benchmarks._options import parse_counts

    return [0 if part.strip() == "0" else parse_counts(option, part)[0] for part in text.split(",")]


def _measure(
    name: str,
    checkpoint: Checkpoint,
    cases: list[Case],
    threads: int,
    rounds: int,
    executor: str,
    dtype: str,
    *,
    all_logits: bool,
) -> list[Measurement]:
    """All cases on one number of threads, in a process of its own."""
    from inference_pio.benchmarks._gen_process import run_worker
    from inference_pio.benchmarks._gen_report import arithmetic, main_encoding, speed
    from inference_pio.benchmarks._text import transient

    what = f"{threads} thread{'s' * (threads > 1)}"
    transient(f"{what}: loading")

    def progress(case: Case, number: int) -> None:
        transient(f"{what}, round {number + 1} of {rounds}: {case.name}")

    result = run_worker(
        name,
        cases,
        threads=threads,
        executor=executor,
        dtype=dtype,
        rounds=rounds,
        all_logits=all_logits,
        progress=progress,
    )
    return [
        speed(
            case,
            values,
            checkpoint,
            name=f"{case.name}, {what}",
            threads=threads,
            details={
                "engine": result.executor,
                "arithmetic": arithmetic(result.executor, main_encoding(checkpoint)),
            },
        )
        for case, values in result.values.items()
    ]


def _show(measurements: Sequence[Measurement], limits: Sequence[Limits]) -> None:
    from inference_pio.benchmarks._roofline import attained
    from inference_pio.benchmarks._statistics import summarize
    from inference_pio.benchmarks._text import number, table, write

    rows = []
    for each in measurements:
        summary, share = summarize(each.values), attained(each, limits)
        spread = f"{number(summary.minimum)}..{number(summary.maximum)}"
        limit = "-" if share is None else f"{share.percent:.0f} % of {share.bound}"
        rows.append((each.name, str(each.details["engine"]), number(summary.median), spread, limit))
    numeric = ("TOKENS/s", "MIN..MAX")
    write(table(rows, heads=("CASE", "EXECUTOR", *numeric, "LIMIT"), numeric=numeric))
