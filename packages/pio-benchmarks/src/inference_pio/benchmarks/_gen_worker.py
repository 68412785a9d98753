"""A process that measures our side: ``python -m inference_pio.benchmarks._gen_worker SPEC``.

``SPEC`` is JSON: ``{"model", "executor", "dtype", "threads", "cases", "repeats", "warm_up", "rounds", "all_logits"}``.
Writes one JSON object per line to standard output: first ``{"executor", "load_s"}``, then ``{"case", "round",
"values"}`` for each case of each round; where something is wrong, ``{"error", "kind", "hint"}`` as the last line.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from inference_pio.benchmarks._gen_case import case_from_json
from inference_pio.benchmarks._gen_executor import build_executor, open_model
from inference_pio.benchmarks._gen_measure import measure_case
from inference_pio.core._threads import limit_spinning
from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FAILED = 1


def worker_main(
    measure: Callable[[Mapping[str, Any], Callable[[str], object]], None],
    arguments: list[str],
    write: Callable[[str], object],
) -> int:
    """Let ``measure`` do what ``arguments[0]`` says; returns the exit code."""
    try:
        measure(json.loads(arguments[0]), write)
    except PioError as error:
        write(json.dumps({"error": error.message, "kind": type(error).__name__, "hint": error.hint}) + "\n")
        return FAILED
    return 0


def measure(spec: Mapping[str, Any], write: Callable[[str], object]) -> None:
    """Measure what ``spec`` says, writing lines of JSON.

    Raises:
        PioError: The model or the executor is not there, or something does not fit.
    """
    # As the engine does before it loads torch.
    limit_spinning()
    cases = [case_from_json(each) for each in spec["cases"]]
    started = time.perf_counter()
    checkpoint = open_model(spec["model"])
    executor = build_executor(checkpoint, spec["executor"], cases, threads=spec["threads"], dtype=spec["dtype"])
    write(json.dumps({"executor": executor.name, "load_s": time.perf_counter() - started}) + "\n")
    for number in range(spec["rounds"]):
        warm_up = bool(spec["warm_up"]) and number == 0
        for index, case in enumerate(cases):
            values = measure_case(
                case,
                executor,
                checkpoint,
                repeats=spec["repeats"],
                warm_up=warm_up,
                all_logits=spec["all_logits"],
            )
            write(json.dumps({"case": index, "round": number, "values": values}) + "\n")
    executor.close()


def write_line(line: str) -> None:
    """Write a line to standard output, at once."""
    sys.stdout.write(line)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(worker_main(measure, sys.argv[1:], write_line))
