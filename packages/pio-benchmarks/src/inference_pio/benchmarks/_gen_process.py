"""Our side in a process of its own, seen from the parent."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference_pio import interfaces
from inference_pio.benchmarks._gen_case import case_to_json
from inference_pio.benchmarks._llama_cpp import last_line
from inference_pio.interfaces import BrokenDependencyError, PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from inference_pio.benchmarks._gen_case import Case

WORKER = "inference_pio.benchmarks._gen_worker"


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """What a worker measured.

    Attributes:
        executor: Name of the one that computed.
        load_s: Seconds from the start of loading to a model that is ready.
        values: Tokens per second of each case, all rounds and repeats in order.
    """

    executor: str
    load_s: float
    values: dict[Case, tuple[float, ...]]


def run_worker(
    model: str,
    cases: Sequence[Case],
    *,
    threads: int,
    executor: str = "auto",
    dtype: str = "auto",
    rounds: int = 1,
    repeats: int = 1,
    warm_up: bool = True,
    all_logits: bool = False,
    module: str = WORKER,
    progress: Callable[[Case, int], None] | None = None,
) -> WorkerResult:
    """Measure ``cases`` in a process of its own, so that threads, memory and libraries are those of this run alone.

    Args:
        model: Name, folder or file of the model.
        cases: What to measure.
        threads: Threads that compute.
        executor: As :func:`build_executor` takes it.
        dtype: The same.
        rounds: Passes over all cases.
        repeats: Measurements of a case in each round.
        warm_up: Whether the first round runs each case once more before.
        all_logits: Whether steps compute every logit, or those that greedy decoding asks for.
        module: The worker.
        progress: Called with each case and the round in which it was done.

    Raises:
        PioError: What went wrong there.
    """
    spec = {
        "model": model,
        "executor": executor,
        "dtype": dtype,
        "threads": threads,
        "cases": [case_to_json(case) for case in cases],
        "rounds": rounds,
        "repeats": repeats,
        "warm_up": warm_up,
        "all_logits": all_logits,
    }
    values: dict[Case, list[float]] = {case: [] for case in cases}
    name, load_s = "", 0.0
    for line in _lines([sys.executable, "-m", module, json.dumps(spec)]):
        if "error" in line:
            raise _as_error(line)
        if "executor" in line:
            name, load_s = line["executor"], line["load_s"]
            continue
        case = cases[line["case"]]
        values[case] += line["values"]
        if progress is not None:
            progress(case, line["round"])
    return WorkerResult(name, load_s, {case: tuple(each) for case, each in values.items()})


def _lines(command: list[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON objects that a worker writes, as they come.

    Raises:
        BrokenDependencyError: It dies of something that it did not foresee.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
            problem = process.stderr.read()
        except BaseException:  # Ctrl-C too, or a caller that wants no more: ends the process and goes on up
            process.kill()
            raise
    if process.returncode not in {0, 1} or (process.returncode == 1 and problem):
        raise BrokenDependencyError(f"measuring ended with code {process.returncode}: {last_line(problem)}")


def _as_error(line: Mapping[str, Any]) -> PioError:
    """The worker's error, of its own class where that takes nothing but a message."""
    kind = getattr(interfaces, line["kind"], PioError)
    if not issubclass(kind, PioError) or issubclass(kind, interfaces.MalformedFileError):
        kind = PioError
    error: PioError = kind(line["error"], hint=line["hint"])
    return error
