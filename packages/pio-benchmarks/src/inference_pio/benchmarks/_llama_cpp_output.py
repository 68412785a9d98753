"""What llama.cpp's benchmarks are told, and what they answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from inference_pio.benchmarks._gen_case import Case
from inference_pio.benchmarks._statistics import median
from inference_pio.interfaces import BrokenDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_BATCH = 2048
_STEP = 512
_SEQUENCE_MULTIPLE = 256
"""llama.cpp gives each sequence a multiple of this many tokens of cache."""


def bench_arguments(
    model: Path, cases: Sequence[Case], context: int, *, threads: int, repeats: int, warm_up: bool
) -> list[str]:
    """Arguments of llama-bench for prefill cases and decode cases of one sequence, all at ``context``."""
    prompts = sorted({case.tokens for case in cases if case.phase == "prefill"}) or [0]
    generated = sorted({case.tokens for case in cases if case.phase == "decode"}) or [0]
    arguments = ["-m", str(model), "-t", str(threads), "-r", str(repeats), "-o", "json"]
    arguments += ["-p", _joined(prompts), "-n", _joined(generated), "-d", str(context)]
    arguments += ["-b", str(_BATCH), "-ub", str(_STEP)]
    return arguments if warm_up else [*arguments, "--no-warmup"]


def parse_bench(text: str) -> dict[Case, float]:
    """Median tokens per second of each test of llama-bench's JSON.

    Raises:
        BrokenDependencyError: It is not what llama-bench writes.
    """
    found: dict[Case, float] = {}
    try:
        for test in json.loads(text):
            phase: Any = "prefill" if test["n_prompt"] else "decode"
            case = Case(phase=phase, tokens=test["n_prompt"] or test["n_gen"], context=test["n_depth"])
            found[case] = median(test["samples_ts"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable("llama-bench", text) from error
    return found


def batched_arguments(model: Path, cases: Sequence[Case], *, threads: int, repeats: int) -> list[str]:
    """Arguments of llama-batched-bench for cases that differ in nothing but the batch.

    Sequences with a context share its tokens, computed once, but not its cache: it is copied for each, so that every
    step reads as much memory as with prompts of their own.
    """
    first = cases[0]
    prompt = first.prompt or max(1, first.context)
    length = -(-(prompt + first.tokens + 1) // _SEQUENCE_MULTIPLE) * _SEQUENCE_MULTIPLE
    batches = [case.batch for case in cases for _ in range(repeats)]
    arguments = ["-m", str(model), "-t", str(threads), "-tb", str(threads), "-b", str(_BATCH), "-ub", str(_STEP)]
    arguments += ["-c", str(max(batches) * length), "-npp", str(prompt), "-ntg", str(first.tokens)]
    arguments += ["-npl", _joined(batches), "--output-format", "jsonl"]
    return [*arguments, "-pps"] if first.context else arguments


def parse_batched(text: str, cases: Sequence[Case]) -> dict[Case, float]:
    """Median tokens per second of each case in llama-batched-bench's lines of JSON; a case without a line is left out.

    Of requests, the tokens that came out count, over the time of both phases.

    Raises:
        BrokenDependencyError: It is not what llama-batched-bench writes.
    """
    found: dict[Case, list[float]] = {}
    by_batch = {case.batch: case for case in cases}
    try:
        for line in text.splitlines():
            if not line.startswith("{"):
                continue
            run = json.loads(line)
            case = by_batch[run["pl"]]
            seconds = run["t"] if case.phase == "engine" else run["t_tg"]
            found.setdefault(case, []).append(run["pl"] * run["tg"] / seconds)
        speeds = {case: median(values) for case, values in found.items()}
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise _unreadable("llama-batched-bench", text) from error
    if not speeds:
        raise _unreadable("llama-batched-bench", text)
    return speeds


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _unreadable(program: str, text: str) -> BrokenDependencyError:
    return BrokenDependencyError(
        f"{program} wrote something else than its results: {' '.join(text.split())[:80]!r}",
        hint="leave --llama-cpp out to have a known version built",
    )
