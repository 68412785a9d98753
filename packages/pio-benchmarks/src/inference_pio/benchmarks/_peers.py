"""Several engines, one model: measured in turn, round by round, and held against each other."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference_pio.benchmarks._gen_case import Case
from inference_pio.benchmarks._rivals import CaseGroup
from inference_pio.benchmarks._statistics import ratio_of_medians
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from inference_pio.benchmarks._rivals import Side
    from inference_pio.benchmarks._statistics import Ratio

GROUPS = ("short", "requests", "long")
LONG = 4096
"""Tokens of a long context."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one line of the result is about.

    Attributes:
        case: What was measured.
        threads: With how many threads.
        busy: Whether another process burned a core meanwhile.
    """

    case: Case
    threads: int
    busy: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        busy = ", one core busy" if self.busy else ""
        return f"{self.case.name}{busy}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(slots=True)
class Comparison:
    """Tokens per second of every side, by row; value ``i`` of each side is of round ``i``.

    Attributes:
        sides: In the order in which they were measured; the first is held against the others.
        rows: By row and then by side's name, one value per round. A side that cannot run a case has no entry.
    """

    sides: tuple[Side, ...]
    rows: dict[Row, dict[str, list[float]]] = field(default_factory=dict)

    def ratio(self, row: Row, rival: str) -> Ratio | None:
        """How many times as fast the first side is, with its interval; None where one of the two has no values."""
        values = self.rows[row]
        own = self.sides[0].name
        if own not in values or rival not in values:
            return None
        return ratio_of_medians(values[own], values[rival], paired=True)

    def kept(self, row: Row, side: str) -> Ratio | None:
        """The share of its quiet speed that ``side`` keeps in the busy ``row``; None where one of them is missing."""
        quiet = self.rows.get(Row(row.case, row.threads), {}).get(side)
        busy = self.rows[row].get(side)
        return None if quiet is None or busy is None else ratio_of_medians(busy, quiet, paired=True)


def plan_groups(
    names: Sequence[str], *, batches: Sequence[int], prompt: int, generated: int, busy: bool, quick: bool
) -> list[CaseGroup]:
    """The groups of cases called ``names``, and the busy one.

    Args:
        names: Of :data:`GROUPS`.
        batches: Sequences that decode at once.
        prompt: Tokens of a prefill.
        generated: Steps of a decode.
        busy: Whether to measure beside a process that burns a core as well.
        quick: Everything small, to see that it works.

    Raises:
        InvalidRequestError: A name is unknown, or there is nothing to measure.
    """
    for name in names:
        if name not in GROUPS:
            raise InvalidRequestError(f"no cases {name!r}", hint=f"give some of {', '.join(GROUPS)}")
    long, requests, inout, steps = (256, 4, 16, 8) if quick else (LONG, 32, 64, 32)
    reading, writing = (min(prompt, 64), min(generated, 8)) if quick else (prompt, generated)
    decode = tuple(Case(phase="decode", tokens=writing, batch=batch) for batch in batches)
    prefill = (Case(phase="prefill", tokens=reading),)
    repeats = 1 if quick else 3
    groups = {
        "short": CaseGroup(name="short", cases=(*decode, *prefill), repeats=repeats),
        "requests": CaseGroup(
            name="requests",
            cases=(Case(phase="engine", tokens=inout, batch=requests, prompt=inout),),
            # Its own first steps are warm-up enough for a run of seconds.
            warm_up=False,
        ),
        "long": CaseGroup(
            name="long",
            cases=(
                *(Case(phase="decode", tokens=steps, batch=batch, context=long) for batch in batches if batch <= 8),
                Case(phase="prefill", tokens=long),
            ),
            warm_up=False,
        ),
    }
    chosen = [groups[name] for name in GROUPS if name in names]
    if busy:
        chosen.append(CaseGroup(name="busy", cases=(*decode[:1], *prefill), repeats=repeats, busy=True))
    if not chosen:
        raise InvalidRequestError("nothing to measure", hint=f"give --cases some of {', '.join(GROUPS)}")
    return chosen


def compare(
    sides: Sequence[Side],
    groups: Sequence[CaseGroup],
    thread_counts: Sequence[int],
    *,
    rounds: int,
    progress: Callable[[str], None],
    after_round: Callable[[], None] = lambda: None,
) -> Comparison:
    """Measure all sides in turn: in every round, and of every group, first one side and then the next.

    What slows the machine for a while so slows all sides, and ratios are taken within a round.

    Args:
        sides: The first is held against the others.
        groups: What to measure.
        thread_counts: Numbers of threads, one after the other.
        rounds: How often.
        progress: Told what is being measured.
        after_round: Called while nothing runs.

    Raises:
        PioError: A side failed.
    """
    comparison = Comparison(tuple(sides))
    for threads in thread_counts:
        for number in range(rounds):
            for group in groups:
                for side in sides:
                    progress(f"{threads} threads, round {number + 1} of {rounds}, {group.name}: {side.name}")
                    with burning_core() if group.busy else nullcontext():
                        speeds = side.measure(group, threads)
                    for case in group.cases:
                        row = comparison.rows.setdefault(Row(case, threads, group.busy), {})
                        if case in speeds:
                            row.setdefault(side.name, []).append(speeds[case])
            after_round()
    return comparison


@contextmanager
def burning_core() -> Iterator[None]:
    """Keep one core busy with a process of no use meanwhile."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
