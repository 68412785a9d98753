"""The engine as a target: its counters know whether prompts found anything in the cache."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from inference_pio.benchmarks._serve_engine import EngineTarget, load_model
from inference_pio.benchmarks._serve_load import Load
from inference_pio.benchmarks._serve_prompts import LengthRange, Prompt
from inference_pio.benchmarks._serve_session import Plan, ask, measure
from inference_pio.interfaces import PioError

MODEL = "smollm2-135m-instruct"


def press(seed, times=1, **plan):
    """Tokens found in the cache, and timelines, of a run or of several on one engine."""
    llm = load_model(MODEL)

    async def main():
        async with EngineTarget(llm, endpoint="completions", ignore_eos=True, temperature=0.0) as target:
            planned = Plan(
                num_prompts=12, output_len=LengthRange(3, 3), load=Load(max_concurrency=3), warmups=2, **plan
            )
            for number in range(times):
                run = await measure(target, planned, np.random.default_rng(seed + number))
            return run.timelines

    timelines = asyncio.run(main())
    return llm.metrics.prefix_hits.total, timelines


def test_no_prompt_is_found_in_the_cache_by_accident():
    """Not one token of one page, within a run and from run to run; lengths are exact."""
    hits, timelines = press(1, times=2, input_len=LengthRange(40, 40))
    assert hits == 0
    assert [each.prompt_tokens for each in timelines] == [40] * 12
    assert [each.output_tokens for each in timelines] == [3] * 12
    assert [len(each.chunks) for each in timelines] == [3] * 12


def test_a_shared_prefix_is_found_in_the_cache():
    """All of its whole pages, by every prompt of the run: a warm-up request has read it before."""
    hits, timelines = press(1, input_len=LengthRange(10, 10), shared_prefix_len=48)
    assert [each.prompt_tokens for each in timelines] == [58] * 12
    assert hits >= 12 * 32


def test_what_the_engine_refuses(monkeypatch):
    """A prompt that never fits is the caller's mistake, told as the engine tells it; settings are those of a server."""
    monkeypatch.setenv("PIO_MAX_MODEL_LEN", "32")
    llm = load_model(MODEL)
    assert llm.max_model_len == 32

    async def main():
        async with EngineTarget(llm, endpoint="chat", ignore_eos=False, temperature=None) as target:
            await ask(target, Prompt("word " * 200, 4))

    with pytest.raises(PioError, match="32"):
        asyncio.run(main())
