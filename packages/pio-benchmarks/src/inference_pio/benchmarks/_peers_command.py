"""``pio bench peers``: this engine and others, side by side on the same file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference_pio.benchmarks._fields import Scalar
    from inference_pio.benchmarks._limits import Limits
    from inference_pio.benchmarks._llama_cpp import LlamaCpp
    from inference_pio.benchmarks._peers import Comparison, Row
    from inference_pio.benchmarks._record import Measurement
    from inference_pio.benchmarks._rivals import Side
    from inference_pio.benchmarks._statistics import Ratio
    from inference_pio.core import Checkpoint


@click.command("peers")
@click.argument("model", required=False)
@click.option("--cases", default="short,requests,long", show_default=True, metavar="NAME,...", help="What to measure.")
@click.option("--busy", is_flag=True, help="Also measure while another process burns a core.")
@click.option("--batch", default="1,8,32", show_default=True, metavar="N,...", help="Sequences that decode at once.")
@click.option("--prompt", default=512, show_default=True, type=click.IntRange(1), help="Tokens of a prefill.")
@click.option("--gen", "generated", default=64, show_default=True, type=click.IntRange(1), help="Steps of a decode.")
@click.option("--threads", metavar="N,...", help="Numbers of threads. [default: 1 and all cores]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds over all sides.")
@click.option("--executor", default="auto", show_default=True, help="Ours: auto, native or torch.")
@click.option("--dtype", default="auto", show_default=True, help="Of the weights, where the executor has a choice.")
@click.option(
    "--all-logits", is_flag=True, help="Ours: compute every logit, not those alone that greedy decoding asks for."
)
@click.option("--llama-cpp", "folder", metavar="DIR", help="A build of llama.cpp, instead of building one.")
@click.option("--no-llama-cpp", is_flag=True, help="Leave llama.cpp out.")
@click.option("--transformers", "with_transformers", is_flag=True, help="Measure transformers too, in bfloat16.")
@click.option("--shape", metavar="NAME", help="Random weights in the shape of qwen3-0.6b, instead of MODEL.")
@click.option("--quick", is_flag=True, help="Everything small, in one round: does it run, no more.")
@click.option("--strict", is_flag=True, help="Refuse if other programs are running.")
@click.option("-o", "--output", metavar="FILE", help="Write the record there.")
@click.option("--json", "as_json", is_flag=True, help="Write the record to standard output as JSON.")
def peers(
    model: str | None,
    cases: str,
    busy: bool,
    batch: str,
    prompt: int,
    generated: int,
    threads: str | None,
    rounds: int,
    executor: str,
    dtype: str,
    all_logits: bool,
    folder: str | None,
    no_llama_cpp: bool,
    with_transformers: bool,
    shape: str | None,
    quick: bool,
    strict: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL (by default that of pio run) here, in llama.cpp and in transformers.

    Each side runs in processes of its own, in turn, on the same file with the same threads and lengths. llama.cpp also
    runs the file's weights as Q4_0, its fastest format. Without --llama-cpp, it is built once from the package index.
    """
    from pathlib import Path

    from inference_pio.benchmarks._gen_command import choose_model
    from inference_pio.benchmarks._gen_report import find_checkpoint, main_encoding, make_record, now
    from inference_pio.benchmarks._limits import measure_limits
    from inference_pio.benchmarks._machine import default_threads, describe_machine
    from inference_pio.benchmarks._options import parse_counts
    from inference_pio.benchmarks._peers import compare, plan_groups
    from inference_pio.benchmarks._quiet import check_quiet
    from inference_pio.benchmarks._record import record_to_json, write_record
    from inference_pio.benchmarks._rivals import WorkerSide
    from inference_pio.benchmarks._text import note, transient, write_json

    groups = plan_groups(
        [name.strip() for name in cases.split(",") if name.strip()],
        batches=parse_counts("--batch", batch),
        prompt=prompt,
        generated=generated,
        busy=busy,
        quick=quick,
    )
    most = default_threads(describe_machine())
    counts = sorted({1, most}) if threads is None else parse_counts("--threads", threads)
    checkpoint = find_checkpoint(choose_model(model, shape, transient))
    build = None if no_llama_cpp else _find_llama_cpp(folder, transient)
    ours = WorkerSide(
        name="ours",
        engine="ours",
        format=main_encoding(checkpoint),
        model=str(checkpoint.path),
        asked=executor,
        dtype=dtype,
        all_logits=all_logits,
    )
    sides = [ours, *_rivals(checkpoint, build, with_transformers=with_transformers, progress=transient)]
    date, warnings = now(), list[str]()

    def check() -> None:
        activity = check_quiet(strict=strict)
        if not activity.quiet:
            transient("")
            note(f"warning: {activity.describe(names=True)}")
            warnings.append(activity.describe(names=False))

    check()
    transient("measuring the machine")
    limits = measure_limits(counts, quick=quick)
    rounds = 1 if quick else rounds
    comparison = compare(sides, groups, counts, rounds=rounds, progress=transient, after_round=check)
    transient("")
    settings: dict[str, Scalar] = {"model": shape or checkpoint.name, "executor": executor, "dtype": dtype}
    settings |= {"all_logits": all_logits, "executor_used": ours.executor}
    settings |= {"rounds": rounds, "cases": cases, "llama_cpp": None if build is None else build.version}
    measurements = to_measurements(comparison, checkpoint)
    record = make_record(
        "peers", settings, measurements, limits=limits, date=date, warnings=list(dict.fromkeys(warnings))
    )
    if output is not None:
        write_record(record, Path(output))
    if as_json:
        write_json(record_to_json(record))
    else:
        _show(comparison, measurements, limits)


def _find_llama_cpp(folder: str | None, progress: Callable[[str], None]) -> LlamaCpp:
    from pathlib import Path

    from inference_pio.benchmarks._gen_report import benchmark_cache
    from inference_pio.benchmarks._llama_cpp import use_llama_cpp
    from inference_pio.benchmarks._llama_cpp_build import build_llama_cpp

    return build_llama_cpp(benchmark_cache(), progress) if folder is None else use_llama_cpp(Path(folder))


def _rivals(
    checkpoint: Checkpoint,
    build: LlamaCpp | None,
    *,
    with_transformers: bool,
    progress: Callable[[str], None],
) -> list[Side]:
    """llama.cpp with the file itself and as Q4_0, once where that is the same; transformers."""
    from inference_pio.benchmarks._gen_report import benchmark_cache, main_encoding
    from inference_pio.benchmarks._llama_cpp import quantise_q4_0
    from inference_pio.benchmarks._rivals import TRANSFORMERS_WORKER, LlamaCppSide, WorkerSide

    path, stored = checkpoint.path, main_encoding(checkpoint)
    sides: list[Side] = []
    if build is not None:
        fastest = path if stored == "Q4_0" else quantise_q4_0(build, path, benchmark_cache(), progress)
        files = {stored: path, "Q4_0": fastest}
        sides += [
            LlamaCppSide(name=f"llama.cpp {name}", format=name, model=file, build=build) for name, file in files.items()
        ]
    if with_transformers:
        sides.append(
            WorkerSide(
                name="transformers bfloat16",
                engine="transformers",
                format="bfloat16",
                model=str(path),
                dtype="bfloat16",
                module=TRANSFORMERS_WORKER,
            )
        )
    return sides


def to_measurements(comparison: Comparison, checkpoint: Checkpoint) -> list[Measurement]:
    """Speeds of every side, and per round how many times as fast the first is as each other."""
    from inference_pio.benchmarks._gen_report import arithmetic, speed
    from inference_pio.benchmarks._record import Measurement

    own, *rivals = comparison.sides
    found: list[Measurement] = []
    for row, values in comparison.rows.items():
        for side in comparison.sides:
            if side.name in values:
                details: dict[str, Scalar] = {
                    "engine": side.engine,
                    "format": side.format,
                    "busy": row.busy,
                    "arithmetic": arithmetic(side.executor, side.format),
                }
                name = f"{row.name}: {side.name}"
                speeds = values[side.name]
                found.append(speed(row.case, speeds, checkpoint, name=name, threads=row.threads, details=details))
        for rival in rivals:
            if own.name in values and rival.name in values:
                ratios = [ours / theirs for ours, theirs in zip(values[own.name], values[rival.name], strict=True)]
                name = f"{row.name}: {own.name} over {rival.name}"
                found.append(Measurement(name, "x", tuple(ratios), "higher", details=row.case.details(row.threads)))
    return found


def _show(comparison: Comparison, measurements: Sequence[Measurement], limits: Sequence[Limits]) -> None:
    from inference_pio.benchmarks._roofline import attained
    from inference_pio.benchmarks._statistics import median
    from inference_pio.benchmarks._text import number, table, write

    own, *rivals = comparison.sides
    write(f"ours: the {own.executor} executor")
    by_name = {measurement.name: measurement for measurement in measurements}
    heads = ["TOKENS/s", own.name, "LIMIT", *(head for side in rivals for head in (side.name, "RATIO"))]
    rows = []
    for row, values in comparison.rows.items():
        shares = by_name.get(f"{row.name}: {own.name}")
        share = None if shares is None else attained(shares, limits)
        line = [row.name, number(median(values[own.name])) if own.name in values else "-"]
        line.append("-" if share is None else f"{share.percent:.0f} % of {share.bound}")
        for side in rivals:
            line.append(number(median(values[side.name])) if side.name in values else "-")
            line.append(_ratio(comparison.ratio(row, side.name)))
        rows.append(line)
    write(table(rows, heads=heads, numeric=[head for head in heads if head not in {"TOKENS/s", "LIMIT", "RATIO"}]))
    for row in comparison.rows:
        if row.busy:
            write(_kept(comparison, row))


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}x"
    return f"{ratio.value:.2f}x ({ratio.low:.2f}..{ratio.high:.2f})"


def _kept(comparison: Comparison, row: Row) -> str:
    kept = {side.name: comparison.kept(row, side.name) for side in comparison.sides}
    told = ", ".join(f"{name} {100 * share.value:.0f} %" for name, share in kept.items() if share is not None)
    return f"speed kept, {row.name}: {told or 'not measured on a quiet machine'}"
