"""What a server costs on top of its engine: the same prompts through HTTP and straight in, taking turns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.benchmarks._record import Measurement
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
class Overhead:
    """What was measured.

    Attributes:
        served: One request at a time, through HTTP.
        direct: The same prompts in the same order, straight into the engine.
        token_cpu_us: Processor time of the server's main thread, which runs its event loop, per token of ``served``;
            None where the system does not tell.
        loaded_token_cpu_us: The same with several requests at once.
        concurrency: How many those were.
    """

    served: tuple[Timeline, ...]
    direct: tuple[Timeline, ...]
    token_cpu_us: float | None
    loaded_token_cpu_us: float | None
    concurrency: int

    @property
    def ttft_ms(self) -> tuple[float, ...]:
        """Of each prompt, by how much its first token came later through HTTP."""
        pairs = zip(self.served, self.direct, strict=True)
        return tuple(1e3 * (served.ttft - direct.ttft) for served, direct in pairs)


async def measure_overhead(
    served: Target,
    direct: Target,
    pid: int,
    prompts: Sequence[Prompt],
    loaded: Sequence[Prompt],
    *,
    concurrency: int,
    say: Callable[[str], None] = lambda _text: None,
) -> Overhead:
    """Measure both sides.

    Args:
        served: The server, which must be local.
        direct: Its engine.
        pid: Process of the server.
        prompts: Asked one at a time, of both sides, the order of which alternates.
        loaded: Asked of the server alone, ``concurrency`` at once.
        concurrency: See there.
        say: Called with what is happening.

    Raises:
        PioError: A request failed.
    """
    timelines: dict[int, list[Timeline]] = {0: [], 1: []}
    spent: list[float | None] = []
    for number, prompt in enumerate(prompts):
        say(f"{number} of {len(prompts)} prompts asked of both sides")
        for side in (0, 1) if number % 2 else (1, 0):
            await asyncio.sleep(_PAUSE_S)
            before = main_thread_cpu_s(pid)
            timelines[side].append(await ask(direct if side else served, prompt))
            if not side:
                spent.append(_difference(before, main_thread_cpu_s(pid)))
    say(f"{concurrency} requests at once")
    before = main_thread_cpu_s(pid)
    run = await run_load(served, loaded, [0.0] * len(loaded), max_concurrency=concurrency, stop=asyncio.Event())
    loaded_cpu = _difference(before, main_thread_cpu_s(pid))
    for timeline in run.timelines:
        if timeline.state == "failed":
            raise PioError(f"a request failed: {timeline.error}")
    return Overhead(
        served=tuple(timelines[0]),
        direct=tuple(timelines[1]),
        token_cpu_us=_per_token(_total(spent), timelines[0]),
        loaded_token_cpu_us=_per_token(loaded_cpu, run.timelines),
        concurrency=concurrency,
    )


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
    for concurrency, value in ((1, overhead.token_cpu_us), (overhead.concurrency, overhead.loaded_token_cpu_us)):
        said = "unknown on this system" if value is None else f"{value:.1f}"
        rows.append((f"CPU per token, {concurrency} at once (us):", said))
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
    for name, value in (
        ("CPU per token, 1 at once", overhead.token_cpu_us),
        (f"CPU per token, {overhead.concurrency} at once", overhead.loaded_token_cpu_us),
    ):
        if value is not None and name not in {each.name for each in found}:
            found.append(Measurement(name, "us", (value,), "lower"))
    return found


def _sides(overhead: Overhead) -> list[tuple[str, dict[str, list[float]]]]:
    sides = {"engine": overhead.direct, "HTTP": overhead.served}
    ttft = {side: [1e3 * each.ttft for each in timelines] for side, timelines in sides.items()}
    tpot = {
        side: [1e3 * (each.latency - each.ttft) / (each.length - 1) for each in timelines if each.length > 1]
        for side, timelines in sides.items()
    }
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


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _total(spent: Sequence[float | None]) -> float | None:
    known = [each for each in spent if each is not None]
    return sum(known) if len(known) == len(spent) else None


def _per_token(seconds: float | None, timelines: Sequence[Timeline]) -> float | None:
    return None if seconds is None else 1e6 * seconds / sum(each.length for each in timelines)
