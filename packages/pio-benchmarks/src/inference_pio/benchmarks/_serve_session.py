"""A load test of one target: try it, learn how it counts, warm it up, press."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference_pio.benchmarks._serve_interrupt import stop_on_interrupt
from inference_pio.benchmarks._serve_load import Load, LoadRun, arrival_times, run_load
from inference_pio.benchmarks._serve_prompts import LengthRange, Prompt, PromptMaker, WordRate
from inference_pio.benchmarks._serve_timeline import Timeline
from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from inference_pio.benchmarks._serve_load import Target

_TRIAL_WORDS = (16, 64)
_OPENING_S = 1e-3
_BUSY = 0.8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be asked.

    Attributes:
        num_prompts: How many prompts are made.
        input_len: Tokens of each, behind the shared prefix.
        output_len: Tokens of each answer.
        shared_prefix_len: Tokens that all prompts begin with.
        dataset: Prompts to ask instead of made ones, in this order.
        warmups: Prompts asked before.
        load: How hard to press.
        ttft_until: ``"chunk"`` to count from any chunk on, as vLLM does, ``"text"`` from the first with text on.
    """

    num_prompts: int
    input_len: LengthRange
    output_len: LengthRange
    shared_prefix_len: int = 0
    dataset: tuple[Prompt, ...] = ()
    warmups: int = 0
    load: Load = field(default_factory=Load)
    ttft_until: str = "chunk"


async def measure(
    target: Target,
    plan: Plan,
    generator: np.random.Generator,
    *,
    say: Callable[[str], None] = lambda _text: None,
) -> LoadRun:
    """Run the plan.

    Args:
        target: Where prompts go.
        plan: What is asked.
        generator: Draws prompts, lengths and arrivals.
        say: Called with what is happening, to be shown on one line.

    Raises:
        PioError: A request before the load failed.
    """
    say("trying the server")
    rate = await learn_word_rate(target, generator)
    maker = PromptMaker(generator, rate, shared_prefix_len=plan.shared_prefix_len)
    await warm_up(target, make_prompts(maker, plan, generator, plan.warmups), plan.load.max_concurrency, say=say)
    prompts = list(plan.dataset) or make_prompts(maker, plan, generator, plan.num_prompts)
    due = arrival_times(len(prompts), plan.load, generator)
    with stop_on_interrupt() as stop:
        run = await run_load(
            target,
            prompts,
            due,
            max_concurrency=plan.load.max_concurrency,
            stop=stop,
            progress=lambda timelines: say(describe_progress(timelines, len(prompts))),
        )
    if plan.ttft_until == "text":
        for timeline in run.timelines:
            timeline.drop_opening()
    return run


async def ask(target: Target, prompt: Prompt) -> Timeline:
    """One answer.

    Raises:
        PioError: There is none.
    """
    timeline = Timeline()
    try:
        await target.send(prompt, timeline)
    except TimeoutError as error:
        raise PioError("no whole answer came in time", hint="--timeout gives it more") from error
    timeline.state = "completed"
    return timeline


async def learn_word_rate(target: Target, generator: np.random.Generator) -> WordRate:
    """How the target counts text of our words, from two short prompts; one token per word if it does not tell.

    Raises:
        PioError: A request failed.
    """
    maker = PromptMaker(generator, WordRate())
    counts = []
    for words in _TRIAL_WORDS:
        timeline = await ask(target, maker.make_words(words, 1))
        counts.append(timeline.prompt_tokens)
    few, many = counts
    if few is None or many is None:
        return WordRate()
    per_word = (many - few) / (_TRIAL_WORDS[1] - _TRIAL_WORDS[0])
    if per_word < 0.5:  # a prompt that was cut, or a count of something else
        return WordRate()
    return WordRate(per_word, max(few - per_word * _TRIAL_WORDS[0], 0.0))


async def warm_up(
    target: Target, prompts: Sequence[Prompt], max_concurrency: int | None, *, say: Callable[[str], None]
) -> None:
    """Ask ``prompts`` without measuring.

    Raises:
        PioError: One failed.
    """
    if not prompts:
        return
    say(f"warming up with {len(prompts)} requests")
    never = asyncio.Event()
    run = await run_load(target, prompts, [0.0] * len(prompts), max_concurrency=max_concurrency, stop=never)
    for timeline in run.timelines:
        if timeline.state == "failed":
            raise PioError(f"a request failed while warming up: {timeline.error}")


def make_prompts(maker: PromptMaker, plan: Plan, generator: np.random.Generator, count: int) -> list[Prompt]:
    """``count`` prompts of the plan's lengths."""
    inputs, outputs = plan.input_len.draw(generator, count), plan.output_len.draw(generator, count)
    return [maker.make(input_len, output_len) for input_len, output_len in zip(inputs, outputs, strict=True)]


def describe_progress(timelines: Sequence[Timeline], count: int) -> str:
    """One line."""
    running = sum(each.state == "running" and bool(each.start) for each in timelines)
    failed = sum(each.state == "failed" for each in timelines)
    done = sum(each.state == "completed" for each in timelines)
    text = f"{done} of {count} requests done, {running} running"
    return f"{text}, {failed} failed" if failed else text


def doubts(run: LoadRun, count: int, *, own_cpu: bool) -> list[str]:
    """What a reader of the figures should know.

    Args:
        run: What came of the load.
        count: Requests that were planned.
        own_cpu: Whether this process did nothing but send and receive.
    """
    done = [each for each in run.timelines if each.state == "completed"]
    found = []
    if run.stopped:
        found.append(f"stopped after {len(run.timelines)} of {count} requests")
    if any(each.output_tokens is None for each in done):
        found.append("the server reports no usage: chunks are counted for tokens, and prompts not at all")
    opened = [each.first_text - each.chunks[0] for each in done if each.first_text is not None]
    early = [pause for pause in opened if pause > _OPENING_S]
    if 2 * len(early) > len(done):
        found.append(
            f"TTFT counts chunks without text, as in vLLM; the first text came up to {1e3 * max(early):.1f} ms later "
            "(--ttft-until text leaves them out)"
        )
    if own_cpu and run.cpu_s > _BUSY * run.duration_s:
        share = 100 * run.cpu_s / run.duration_s
        found.append(f"the load generator itself used {share:.0f} % of a processor: the server may be faster")
    return found
