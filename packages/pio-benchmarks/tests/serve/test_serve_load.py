"""Arrivals, bounds on what runs at once, failures, stopping, and what is learned before."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest

from inference_pio.benchmarks._serve_load import Load, LoadRun, arrival_times, run_load
from inference_pio.benchmarks._serve_prompts import LengthRange, Prompt, WordRate
from inference_pio.benchmarks._serve_session import Plan, describe_progress, doubts, learn_word_rate, measure
from inference_pio.benchmarks._serve_timeline import Timeline
from inference_pio.interfaces import PioError


class Scripted:
    """Answers after some milliseconds; counts what runs at once."""

    def __init__(self, *, seconds=0.01, fails=lambda _prompt: None, per_word=1, overhead=2, tells=True):
        self.seconds, self.fails, self.per_word, self.overhead, self.tells = seconds, fails, per_word, overhead, tells
        self.running = self.peak = 0
        self.prompts = []

    async def send(self, prompt, timeline):
        timeline.start = time.perf_counter()
        self.prompts.append(prompt)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(self.seconds)
            error = self.fails(prompt)
            if error is not None:
                raise error
            timeline.note_chunk(time.perf_counter(), text=True)
            if self.tells:
                timeline.prompt_tokens = self.overhead + self.per_word * len(prompt.content.split())
                timeline.output_tokens = prompt.output_len
        finally:
            self.running -= 1


def run(target, count, *, due=None, max_concurrency=None, stop_after=None):
    async def main():
        stop = asyncio.Event()
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, stop.set)
        prompts = [Prompt(f"p{number}", 1) for number in range(count)]
        return await run_load(target, prompts, due or [0.0] * count, max_concurrency=max_concurrency, stop=stop)

    return asyncio.run(main())


def test_arrivals_have_the_rate_and_spread_of_a_gamma_process():
    """The last is sent when the rate says; pauses have the coefficient of variation ``1 / sqrt(burstiness)``."""
    for burstiness in (0.25, 1.0, 4.0):
        times = np.array(arrival_times(20_000, Load(50.0, burstiness), np.random.default_rng(0)))
        pauses = np.diff(times, prepend=0.0)
        assert times[-1] == pytest.approx(400.0)
        assert (pauses >= 0).all()
        assert pauses.std() / pauses.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_arrivals_at_the_extremes():
    """All at once, and a metronome; the same seed the same times."""
    assert arrival_times(3, Load(), np.random.default_rng(0)) == [0.0, 0.0, 0.0]
    assert arrival_times(4, Load(2.0, math.inf), np.random.default_rng(0)) == pytest.approx([0.5, 1.0, 1.5, 2.0])
    load = Load(3.0)
    assert arrival_times(9, load, np.random.default_rng(5)) == arrival_times(9, load, np.random.default_rng(5))


@pytest.mark.parametrize(("bound", "peak"), [(None, 12), (1, 1), (3, 3), (99, 12)])
def test_no_more_run_at_once_than_may(bound, peak):
    """And as many as may do."""
    target = Scripted()
    result = run(target, 12, max_concurrency=bound)
    assert target.peak == peak
    assert [each.state for each in result.timelines] == ["completed"] * 12
    assert not result.stopped


def test_requests_wait_for_their_time_and_for_their_turn():
    """Sent no earlier than due; waiting for a turn is this side's, and no part of the latency."""
    begin = time.perf_counter()
    result = run(Scripted(seconds=0.1), 3, due=[0.0, 0.0, 0.15], max_concurrency=1)
    first, second, third = result.timelines
    assert third.due - begin >= 0.15
    assert second.queued >= 0.09
    assert second.start >= first.chunks[-1]
    assert result.duration_s >= 0.3


def test_failures_are_told_and_stay_alone():
    """Refusals and time-outs; the others are answered."""
    errors = {"p1": PioError("full", hint="later"), "p3": TimeoutError()}
    result = run(Scripted(fails=lambda prompt: errors.get(prompt.content)), 5)
    assert [each.state for each in result.timelines] == ["completed", "failed", "completed", "failed", "completed"]
    assert result.timelines[1].error == "full (later)"
    assert "--timeout" in result.timelines[3].error


def test_other_errors_are_not_swallowed():
    """What is no failure of a request ends the load."""
    with pytest.raises(ExceptionGroup) as caught:
        run(Scripted(fails=lambda _prompt: ZeroDivisionError("bug")), 2)
    assert caught.value.subgroup(ZeroDivisionError) is not None


def test_stopping_keeps_what_has_ended():
    """Nothing more is sent, what runs is cancelled and counts neither way."""
    target = Scripted(seconds=0.05)
    result = run(target, 50, max_concurrency=2, stop_after=0.12)
    assert result.stopped
    assert 2 <= len(result.timelines) < 10
    assert {each.state for each in result.timelines} == {"completed"}
    assert target.running == 0


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Scripted(per_word=1, overhead=31), WordRate(1.0, 31.0)),
        (Scripted(per_word=2, overhead=0), WordRate(2.0, 0.0)),
        (Scripted(tells=False), WordRate()),
        (Scripted(per_word=0, overhead=9), WordRate()),
    ],
)
def test_how_a_server_counts_is_learned_from_two_prompts(target, expected):
    """One token per word where it does not tell, or tells nonsense."""
    assert asyncio.run(learn_word_rate(target, np.random.default_rng(0))) == expected
    assert [prompt.output_len for prompt in target.prompts] == [1, 1]


def test_made_prompts_come_out_as_long_as_was_asked():
    """With what the server adds; lengths within their ranges; warm-up and trial are no part of the run."""
    plan = Plan(num_prompts=20, input_len=LengthRange(20, 30), output_len=LengthRange(2, 3), warmups=3)
    target = Scripted(overhead=7)
    result = asyncio.run(measure(target, plan, np.random.default_rng(0)))
    assert len(target.prompts) == 2 + 3 + 20
    assert len({tuple(prompt.content.split()[:3]) for prompt in target.prompts}) == 25
    assert {each.prompt_tokens for each in result.timelines} <= set(range(20, 31))
    assert {each.output_tokens for each in result.timelines} == {2, 3}


def test_a_target_that_refuses_is_not_pressed():
    """The first refusal is the answer, whether while trying or while warming up."""
    plan = Plan(num_prompts=20, input_len=LengthRange(20, 20), output_len=LengthRange(2, 2), warmups=1)
    target = Scripted(fails=lambda _prompt: PioError("no key", hint="give one"))
    with pytest.raises(PioError, match=r"no key \(give one\)"):
        asyncio.run(measure(target, plan, np.random.default_rng(0)))
    assert len(target.prompts) == 1
    slow = Scripted(fails=lambda _prompt: TimeoutError())
    with pytest.raises(PioError, match="no whole answer came in time"):
        asyncio.run(measure(slow, plan, np.random.default_rng(0)))
    later = Scripted(fails=lambda prompt: PioError("full") if prompt.output_len > 1 else None)
    with pytest.raises(PioError, match="failed while warming up: full"):
        asyncio.run(measure(later, plan, np.random.default_rng(0)))


def test_doubts_are_told(timeline):
    """No usage, early opening chunks, a busy generator, a stop; and none where there is none."""
    good = [timeline(0.0, 1.0, 2.0, tokens=2)]
    assert doubts(LoadRun(good, 2.0, stopped=False, cpu_s=0.1), 1, own_cpu=True) == []
    early = timeline(0.0, tokens=None)
    early.note_chunk(0.5, text=False)
    early.note_chunk(0.75, text=True)
    told = doubts(LoadRun([early], 2.0, stopped=True, cpu_s=1.9), 3, own_cpu=True)
    assert [
        text in found
        for text, found in zip(("stopped after 1 of 3", "no usage", "up to 250.0 ms later", "95 %"), told, strict=True)
    ] == [True] * 4
    assert len(doubts(LoadRun(good, 2.0, stopped=False, cpu_s=1.9), 1, own_cpu=False)) == 0


def test_progress_is_one_line():
    """Done, running, failed; what waits for its turn does not run."""
    timelines = [Timeline(state="completed"), Timeline(start=1.0), Timeline(), Timeline(state="failed")]
    assert describe_progress(timelines, 9) == "1 of 9 requests done, 1 running, 1 failed"
    assert describe_progress(timelines[:1], 9) == "1 of 9 requests done, 0 running"
