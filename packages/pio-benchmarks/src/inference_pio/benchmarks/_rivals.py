"""The sides of a comparison: each measures a group of cases in processes of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from inference_pio.benchmarks._gen_process import WORKER, run_worker
from inference_pio.benchmarks._llama_cpp import run_program
from inference_pio.benchmarks._llama_cpp_output import batched_arguments, bench_arguments, parse_batched, parse_bench
from inference_pio.benchmarks._statistics import median

if TYPE_CHECKING:
    from pathlib import Path

    from inference_pio.benchmarks._gen_case import Case
    from inference_pio.benchmarks._llama_cpp import LlamaCpp

TRANSFORMERS_WORKER = "inference_pio.benchmarks._rivals_transformers"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseGroup:
    """Cases that a side measures in one go, so that loading is paid once.

    Attributes:
        name: What people call it.
        cases: What is measured.
        repeats: Measurements of a case per round, of which the median counts.
        warm_up: Whether each case is run once before.
        busy: Whether another process burns a core meanwhile.
    """

    name: str
    cases: tuple[Case, ...]
    repeats: int = 1
    warm_up: bool = True
    busy: bool = False


class Side(Protocol):
    """One engine with one file."""

    @property
    def name(self) -> str:
        """What people call it, unique among the sides."""

    @property
    def engine(self) -> str:
        """``"ours"``, ``"llama.cpp"``, ..."""

    @property
    def format(self) -> str:
        """How it holds the weights: ``"Q4_1"``, ``"bfloat16"``, ..."""

    @property
    def executor(self) -> str:
        """What computes: ``"native"``, ``"torch"``, ``"llama.cpp"``, ...; of ours it is known once it has measured."""

    def measure(self, group: CaseGroup, threads: int) -> dict[Case, float]:
        """Tokens per second of each case of ``group``; a case that the side cannot run is left out.

        Raises:
            PioError: What went wrong.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSide:
    """An engine in Python, run by a worker as :mod:`._gen_worker` describes it.

    Attributes:
        name: As in :class:`Side`.
        engine: As in :class:`Side`.
        format: As in :class:`Side`.
        model: What to load.
        asked: The executor as :func:`~._gen_executor.build_executor` takes it.
        dtype: Of the weights, where the executor gives a choice.
        all_logits: Whether steps compute every logit, or those that greedy decoding asks for.
        module: The worker.
    """

    name: str
    engine: str
    format: str
    model: str
    asked: str = "auto"
    dtype: str = "auto"
    all_logits: bool = False
    module: str = WORKER
    _used: list[str] = field(default_factory=list, repr=False)

    @property
    def executor(self) -> str:
        """As in :class:`Side`: what the last worker said, or what was asked for before there was one."""
        return self._used[-1] if self._used else self.asked

    def measure(self, group: CaseGroup, threads: int) -> dict[Case, float]:
        """As :meth:`Side.measure`."""
        result = run_worker(
            self.model,
            group.cases,
            threads=threads,
            executor=self.asked,
            dtype=self.dtype,
            repeats=group.repeats,
            warm_up=group.warm_up,
            all_logits=self.all_logits,
            module=self.module,
        )
        self._used[:] = [result.executor]
        return {case: median(values) for case, values in result.values.items() if values}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppSide:
    """llama.cpp with one file: llama-bench for one sequence, llama-batched-bench for many and for requests.

    Attributes:
        name: As in :class:`Side`.
        format: As in :class:`Side`.
        model: A GGUF file.
        build: Its programs.
        engine: As in :class:`Side`.
        executor: As in :class:`Side`.
    """

    name: str
    format: str
    model: Path
    build: LlamaCpp
    engine: str = "llama.cpp"
    executor: str = "llama.cpp"

    def measure(self, group: CaseGroup, threads: int) -> dict[Case, float]:
        """As :meth:`Side.measure`."""
        found: dict[Case, float] = {}
        single = [case for case in group.cases if case.phase != "engine" and case.batch == 1]
        for context in dict.fromkeys(case.context for case in single):
            cases = [case for case in single if case.context == context]
            arguments = bench_arguments(
                self.model, cases, context, threads=threads, repeats=group.repeats, warm_up=group.warm_up
            )
            found |= parse_bench(run_program(self.build, "llama-bench", arguments))
        many = [case for case in group.cases if case.phase == "engine" or case.batch > 1]
        for likes in dict.fromkeys((case.phase, case.context, case.prompt, case.tokens) for case in many):
            cases = [case for case in many if (case.phase, case.context, case.prompt, case.tokens) == likes]
            arguments = batched_arguments(self.model, cases, threads=threads, repeats=group.repeats)
            found |= parse_batched(run_program(self.build, "llama-batched-bench", arguments), cases)
        return {case: found[case] for case in group.cases if case in found}
