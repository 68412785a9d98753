"""Load: when requests are sent, and how many may run at once."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from inference_pio.benchmarks._serve_timeline import Timeline
from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from inference_pio.benchmarks._serve_prompts import Prompt


class Target(Protocol):
    """Where prompts go."""

    async def send(self, prompt: Prompt, timeline: Timeline) -> None:
        """Have a prompt answered, and note its start, its chunks and the counts of tokens.

        Raises:
            PioError: It failed.
            TimeoutError: It took too long.
        """
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """How hard to press.

    Attributes:
        request_rate: Requests per second on average; infinity sends all at once.
        burstiness: Shape of the gamma distribution of the pauses between them: 1 is a Poisson process, less comes in
            bursts, more is more even, infinity is a metronome.
        max_concurrency: Requests that run at once at most; what is due earlier waits on this side. None for no bound.
    """

    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What came of a load.

    Attributes:
        timelines: Of the requests that were sent and have ended, in the order in which they were due.
        duration_s: From the first to the end of the last.
        stopped: Whether it was stopped before all were done.
        cpu_s: Processor time of this process meanwhile.
    """

    timelines: list[Timeline]
    duration_s: float
    stopped: bool
    cpu_s: float


def arrival_times(count: int, load: Load, generator: np.random.Generator) -> list[float]:
    """Seconds from the start at which requests are sent, as in vLLM's benchmark.

    The pauses before each are drawn, and then stretched so that the last request is sent at ``count / request_rate``:
    what two seeds draw would otherwise differ by some percent.

    Args:
        count: How many requests.
        load: Rate and burstiness.
        generator: Draws the pauses.
    """
    import numpy as np

    if math.isinf(load.request_rate):
        return [0.0] * count
    even = math.isinf(load.burstiness)
    times = np.cumsum(np.ones(count) if even else generator.gamma(shape=load.burstiness, size=count))
    scaled: list[float] = (times * (count / load.request_rate / times[-1])).tolist()
    return scaled


async def run_load(
    target: Target,
    prompts: Sequence[Prompt],
    due: Sequence[float],
    *,
    max_concurrency: int | None,
    stop: asyncio.Event,
    progress: Callable[[Sequence[Timeline]], None] = lambda _timelines: None,
) -> LoadRun:
    """Send all prompts.

    Args:
        target: Where to.
        prompts: What.
        due: When, in seconds from now.
        max_concurrency: How many at once.
        stop: Once set, nothing more is sent, and what runs is cancelled.
        progress: Called several times a second with the timelines of what was sent so far.
    """
    turn = asyncio.Semaphore(max_concurrency or len(prompts))
    timelines: list[Timeline] = []
    begin, cpu = time.perf_counter(), time.process_time()
    tasks = [asyncio.create_task(_arrivals(target, prompts, due, turn, timelines, begin))]
    tasks.append(asyncio.create_task(_watch(progress, timelines)))
    halted = asyncio.create_task(stop.wait())
    await asyncio.wait([tasks[0], halted], return_when=asyncio.FIRST_COMPLETED)
    duration, spent = time.perf_counter() - begin, time.process_time() - cpu
    stopped = not tasks[0].done()
    for task in (*tasks, halted):
        if not task.done():
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
    ended = [timeline for timeline in timelines if timeline.state != "running"]
    return LoadRun(ended, duration, stopped, spent)


async def run_one(target: Target, prompt: Prompt, timeline: Timeline) -> None:
    """Send a prompt; a failure becomes part of its timeline."""
    try:
        await target.send(prompt, timeline)
    except PioError as error:
        timeline.state, timeline.error = "failed", str(error)
    except TimeoutError:
        timeline.state, timeline.error = "failed", "no whole answer came in time (--timeout)"
    else:
        timeline.state = "completed"


async def _arrivals(
    target: Target,
    prompts: Sequence[Prompt],
    due: Sequence[float],
    turn: asyncio.Semaphore,
    timelines: list[Timeline],
    begin: float,
) -> None:
    async def take_turn(prompt: Prompt, timeline: Timeline) -> None:
        async with turn:
            timeline.start = time.perf_counter()
            await run_one(target, prompt, timeline)

    async with asyncio.TaskGroup() as group:
        for prompt, seconds in zip(prompts, due, strict=True):
            pause = begin + seconds - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            timeline = Timeline(due=time.perf_counter())
            timelines.append(timeline)
            group.create_task(take_turn(prompt, timeline))


async def _watch(progress: Callable[[Sequence[Timeline]], None], timelines: Sequence[Timeline]) -> None:
    while True:
        await asyncio.sleep(0.25)
        progress(timelines)
