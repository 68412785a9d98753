"""What a server costs on top of its engine: the same prompts through HTTP and straight in, taking turns.

Overhead is the processor time of the thread that runs the server's event loop. All that a server does for a token is
done there, and nothing else is: the model has threads of its own. The time of the whole process, less that of the same
generation without a server, would say the same if the model's own did not vary by more than the server takes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.benchmarks._record import Measurement
from inference_pio.benchmarks._serve_floor import bare_token_us
from inference_pio.benchmarks._serve_load import run_load
from inference_pio.benchmarks._serve_session import ask
from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference_pio.benchmarks._serve_load import Target
    from inference_pio.benchmarks._serve_prompts import Prompt
    from inference_pio.benchmarks._serve_timeline import Timeline

_PAUSE_S = 0.02
"""Between turns: threads that wait for work by spinning shall have gone to sleep."""

_WIDTH = 50
_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class LoopTime:
    """Processor time of a server's main thread, which runs its event loop, in microseconds.

    Attributes:
        per_request: For an answer of no token: reading, tokenizing, the head of the reply.
        per_token: For each token streamed.
    """

    per_request: float
    per_token: float


@dataclass(frozen=True, slots=True)
class Overhead:
    """What was measured.

    Attributes:
        served: One request at a time, through HTTP.
        direct: The same prompts in the same order, straight into the engine.
        alone: Processor time of the server with one request at a time; None where the system does not tell.
        loaded: The same with several at once.
        concurrency: How many those were.
        bare: What a token costs here if nothing is done for it but to wake up and send, at the pace of one request, in
            microseconds.
    """

    served: tuple[Timeline, ...]
    direct: tuple[Timeline, ...]
    alone: LoopTime | None
    loaded: LoopTime | None
    concurrency: int
    bare: float

    @property
    def ttft_ms(self) -> tuple[float, ...]:
        """Of each prompt, by how much its first token came later through HTTP."""
        pairs = zip(self.served, self.direct, strict=True)
        return tuple(1e3 * (served.ttft - direct.ttft) for served, direct in pairs)


async def measure_overhead(
    served: Target,
    direct: Target,
    pid: int,
    make: Callable[[int | None], list[Prompt]],
    *,
    concurrency: int,
    say: Callable[[str], None] = lambda _text: None,
    bare: Callable[[float], float] = bare_token_us,
) -> Overhead:
    """Measure both sides.

    What a request costs and what a token costs is told apart by asking for answers of one token as well.

    Args:
        served: The server, which must be local.
        direct: Its engine.
        pid: Process of the server.
        make: Gives fresh prompts, always as many: with answers of the length that it is called with, or of the planned
            ones for None.
        concurrency: Requests at once where there are several.
        say: Called with what is happening.
        bare: Measures what a bare token costs, given the seconds between two.

    Raises:
        PioError: A request failed.
    """
    timelines: dict[int, list[Timeline]] = {0: [], 1: []}
    clock, short_clock = _Clock(pid), _Clock(pid)
    pairs = list(zip(make(None), make(1), strict=True))
    for number, (prompt, short) in enumerate(pairs):
        say(f"{number} of {len(pairs)} prompts asked of both sides")
        for side in (0, 1) if number % 2 else (1, 0):
            await asyncio.sleep(_PAUSE_S)
            if side:
                timelines[side].append(await ask(direct, prompt))
                continue
            with clock:
                timelines[side].append(await ask(served, prompt))
            clock.tokens += timelines[side][-1].length
            with short_clock:
                short_clock.tokens += (await ask(served, short)).length
    say(f"{concurrency} requests at once")
    loaded_clock, short_loaded_clock = _Clock(pid), _Clock(pid)
    for each, length in ((short_loaded_clock, 1), (loaded_clock, None)):
        with each:
            each.tokens = await _press(served, make(length), concurrency)
    say("tokens of no server")
    pace = _median([_tpot_s(each) for each in timelines[1]])
    return Overhead(
        served=tuple(timelines[0]),
        direct=tuple(timelines[1]),
        alone=_loop_time(clock, short_clock, len(pairs)),
        loaded=_loop_time(loaded_clock, short_loaded_clock, len(pairs)),
        concurrency=concurrency,
        bare=await asyncio.to_thread(bare, pace),
    )


class _Clock:
    """Adds up the processor time of a process's main thread within its ``with`` blocks.

    Attributes:
        spent: Seconds; None once the system did not tell.
        tokens: For the caller, who knows how many it was.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before: float | None = None
        self.spent: float | None = 0.0
        self.tokens = 0

    def __enter__(self) -> None:
        self._before = main_thread_cpu_s(self._pid)

    def __exit__(self, *_: object) -> None:
        after = main_thread_cpu_s(self._pid)
        known = self.spent is not None and self._before is not None and after is not None
        self.spent = self.spent + after - self._before if known else None  # type: ignore[operator]  # all three are


async def _press(target: Target, prompts: list[Prompt], concurrency: int) -> int:
    """Ask all prompts, some at once; how many tokens came.

    Raises:
        PioError: A request failed.
    """
    run = await run_load(target, prompts, [0.0] * len(prompts), max_concurrency=concurrency, stop=asyncio.Event())
    for timeline in run.timelines:
        if timeline.state == "failed":
            raise PioError(f"a request failed: {timeline.error}")
    return sum(timeline.length for timeline in run.timelines)


def _loop_time(clock: _Clock, short: _Clock, requests: int) -> LoopTime | None:
    if clock.spent is None or short.spent is None or clock.tokens <= short.tokens:
        return None
    per_token = (clock.spent - short.spent) / (clock.tokens - short.tokens)
    return LoopTime(1e6 * (short.spent - per_token * short.tokens) / requests, 1e6 * per_token)


def main_thread_cpu_s(pid: int) -> float | None:
    """Processor time that the first thread of a process has used, in seconds; None where the system does not tell.

    Linux counts it in nanoseconds; what is known of whole processes would drown in the time of the model's threads.
    """
    try:
        text = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii")
    except OSError:
        return None
    return int(text.split()[0]) / 1e9


def overhead_block(overhead: Overhead) -> str:
    """The figures for people."""
    low, median, high = _interval(overhead.ttft_ms)
    rows: list[tuple[str, str]] = [("Prompts asked of both sides:", str(len(overhead.served)))]
    for short, values in _sides(overhead):
        for side, milliseconds in values.items():
            rows.append((f"Median {short}, {side} (ms):", f"{_median(milliseconds):.2f}"))
    rows.append(("TTFT overhead, median (ms):", f"{median:.2f} ({low:.2f} to {high:.2f})"))
    for concurrency, found in ((1, overhead.alone), (overhead.concurrency, overhead.loaded)):
        for what, value in (("token", found and found.per_token), ("request", found and found.per_request)):
            said = "unknown" if value is None else f"{value:.1f}"
            rows.append((f"CPU per {what}, {concurrency} at once (us):", said))
    rows.append(("CPU to wake up and send, 1 at once (us):", f"{overhead.bare:.1f}"))
    body = [f"{name:<40} {value}" for name, value in rows]
    return "\n".join([f"{' Server Overhead ':=^{_WIDTH}}", *body, "=" * _WIDTH])


def overhead_measurements(overhead: Overhead) -> list[Measurement]:
    """The figures for a record; one value per prompt where there is one."""
    found = [
        Measurement(f"{short}, {side}", "ms", tuple(milliseconds), "lower", details={"engine": side})
        for short, values in _sides(overhead)
        for side, milliseconds in values.items()
    ]
    found.append(Measurement("TTFT overhead", "ms", overhead.ttft_ms, "lower"))
    for at_once, loop in {1: overhead.alone, overhead.concurrency: overhead.loaded}.items():
        if loop is not None:
            found.append(Measurement(f"CPU per token, {at_once} at once", "us", (loop.per_token,), "lower"))
            found.append(Measurement(f"CPU per request, {at_once} at once", "us", (loop.per_request,), "lower"))
    found.append(Measurement("CPU to wake up and send, 1 at once", "us", (overhead.bare,), "lower"))
    return found


def _tpot_s(timeline: Timeline) -> float:
    """Seconds between two tokens; 0 where there is one alone."""
    return (timeline.latency - timeline.ttft) / (timeline.length - 1) if timeline.length > 1 else 0.0


def _sides(overhead: Overhead) -> list[tuple[str, dict[str, list[float]]]]:
    sides = {"engine": overhead.direct, "HTTP": overhead.served}
    ttft = {side: [1e3 * each.ttft for each in timelines] for side, timelines in sides.items()}
    tpot = {side: [1e3 * _tpot_s(each) for each in timelines if each.length > 1] for side, timelines in sides.items()}
    return [("TTFT", ttft), *([("TPOT", tpot)] if all(tpot.values()) else [])]


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, value and upper end of the median, with a 95 % percentile bootstrap interval."""
    import numpy as np

    array = np.array(values)
    drawn = np.random.default_rng(0).integers(len(array), size=(_RESAMPLES, len(array)))
    low, high = np.quantile(np.median(array[drawn], axis=1), [0.025, 0.975]).tolist()
    return low, float(np.median(array)), high


def _median(values: Sequence[float]) -> float:
    import numpy as np

    return float(np.median(values))
