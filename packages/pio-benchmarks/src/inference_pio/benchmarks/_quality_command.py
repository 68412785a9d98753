"""``pio bench quality``: what a faster arithmetic costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.benchmarks._fields import Scalar
    from inference_pio.benchmarks._quality import Quality
    from inference_pio.benchmarks._record import Measurement
    from inference_pio.core import Checkpoint


@click.command("quality")
@click.argument("model", required=False)
@click.option("--executor", default="auto", show_default=True, help="auto, native or torch.")
@click.option("--dtype", default="auto", show_default=True, help="Of the weights, where the executor gives a choice.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads. [default: all cores]")
@click.option("--tokens", default=600, show_default=True, type=click.IntRange(2), help="Tokens of the text at most.")
@click.option("--text", "file", metavar="FILE", help="Another text than the bundled one.")
@click.option("--max-kl", type=click.FloatRange(0, min_open=True), metavar="NATS", help="Fail above this mean KL.")
@click.option("-o", "--output", metavar="FILE", help="Write the record there.")
@click.option("--json", "as_json", is_flag=True, help="Write the record to standard output as JSON.")
def quality(
    model: str | None,
    executor: str,
    dtype: str,
    threads: int | None,
    tokens: int,
    file: str | None,
    max_kl: float | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Hold MODEL's predictions against those of the same file in float32.

    Perplexity, mean KL divergence and agreement of the likeliest token, over a bundled text; needs no network.
    """
    from pathlib import Path

    from inference_pio.benchmarks._gen_report import default_model, find_checkpoint, make_record, now
    from inference_pio.benchmarks._machine import default_threads, describe_machine
    from inference_pio.benchmarks._quality import compare_logits, text_tokens
    from inference_pio.benchmarks._record import record_to_json, write_record
    from inference_pio.benchmarks._text import transient, write_json
    from inference_pio.interfaces import PioError

    date = now()
    count = default_threads(describe_machine()) if threads is None else threads
    checkpoint = find_checkpoint(default_model() if model is None else model)
    ids = text_tokens(checkpoint, None if file is None else _read(file), tokens)
    transient("float32")
    expected, _ = _predictions(checkpoint, ids, "torch", "float32", count)
    transient("the executor")
    got, name = _predictions(checkpoint, ids, executor, dtype, count)
    transient("")
    result = compare_logits(expected, got, ids)
    measurements = to_measurements(result, name, dtype)
    if as_json or output is not None:
        settings: dict[str, Scalar] = {"model": checkpoint.name, "executor": name, "dtype": dtype, "tokens": len(ids)}
        record = make_record("quality", settings, measurements, limits=(), date=date, warnings=())
        if output is not None:
            write_record(record, Path(output))
        if as_json:
            write_json(record_to_json(record))
    if not as_json:
        _show(result, name, dtype)
    mean = float(result.divergence.mean())
    if max_kl is not None and mean > max_kl:
        raise PioError(f"the mean KL divergence is {mean:.4f} nats, above {max_kl:g}", hint="compare with --executor")


def to_measurements(result: Quality, executor: str, dtype: str) -> list[Measurement]:
    """The figures as measurements."""
    from inference_pio.benchmarks._record import Measurement

    details: dict[str, Scalar] = {"engine": executor, "dtype": dtype}
    return [
        Measurement("perplexity, float32", "perplexity", (result.reference_perplexity,), "neither", details=details),
        Measurement("perplexity", "perplexity", (result.perplexity,), "lower", details=details),
        Measurement("mean KL", "nats", (float(result.divergence.mean()),), "lower", details=details),
        Measurement("largest KL", "nats", (float(result.divergence.max()),), "lower", details=details),
        Measurement("top-1 agreement", "%", (100 * float(result.agreement.mean()),), "higher", details=details),
    ]


def _read(file: str) -> str:
    from pathlib import Path

    from inference_pio.interfaces import InvalidRequestError

    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(
            f"--text {file!r} cannot be read: {error}", hint="give a text file in UTF-8"
        ) from error


def _predictions(
    checkpoint: Checkpoint, tokens: list[int], executor: str, dtype: str, threads: int
) -> tuple[list[NDArray[np.float32]], str]:
    """Logits of all positions, and the name of the executor that computed them."""
    from inference_pio.benchmarks._gen_case import Case
    from inference_pio.benchmarks._gen_executor import build_executor
    from inference_pio.benchmarks._quality import predict

    cases = [Case(phase="prefill", tokens=len(tokens))]
    built = build_executor(checkpoint, executor, cases, threads=threads, dtype=dtype)
    try:
        return list(predict(built, checkpoint.shape.vocab_size, tokens)), built.name
    finally:
        built.close()


def _show(result: Quality, executor: str, dtype: str) -> None:
    from inference_pio.benchmarks._text import table, write

    name = executor if dtype == "auto" else f"{executor}, {dtype}"
    rows = [
        ("float32", f"{result.reference_perplexity:.3f}", "", "", ""),
        (
            name,
            f"{result.perplexity:.3f}",
            f"{result.divergence.mean():.5f}",
            f"{result.divergence.max():.4f}",
            f"{100 * result.agreement.mean():.1f} %",
        ),
    ]
    numeric = ("PERPLEXITY", "MEAN KL", "MAX KL", "SAME TOP-1")
    write(f"{result.positions} predictions; KL divergence from float32 in nats")
    write(table(rows, heads=("EXECUTOR", *numeric), numeric=numeric))
