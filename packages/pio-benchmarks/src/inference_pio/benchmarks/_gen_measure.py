"""The clock: one case, some times over, on an executor that is ready."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.benchmarks._gen_driver import StepDriver
from inference_pio.benchmarks._gen_executor import STEP_TOKENS
from inference_pio.core import Engine, SamplingParams
from inference_pio.interfaces import Request

if TYPE_CHECKING:
    from inference_pio.benchmarks._gen_case import Case
    from inference_pio.core import Checkpoint
    from inference_pio.interfaces import Executor


def measure_case(
    case: Case,
    executor: Executor,
    checkpoint: Checkpoint,
    *,
    repeats: int,
    warm_up: bool = True,
    all_logits: bool = False,
) -> tuple[float, ...]:
    """Tokens per second of ``case``, as counted by :attr:`Case.counted`, once per repeat.

    Args:
        case: What to run.
        executor: Computes the model, with room for the case.
        checkpoint: The model.
        repeats: How often, the warm-up not counted.
        warm_up: Whether to run the case once before.
        all_logits: Whether steps compute every logit; otherwise the largest, as greedy decoding asks for, and as the
            engine does in its cases.
    """

    def run(seed: int) -> float:
        if case.phase == "engine":
            return _engine_seconds(case, executor, checkpoint, seed)
        return _step_seconds(case, executor, checkpoint, seed, largest=0 if all_logits else 1)

    seconds = [run(seed) for seed in range(repeats + warm_up)]
    return tuple(case.counted / each for each in seconds[warm_up:])


def _step_seconds(case: Case, executor: Executor, checkpoint: Checkpoint, seed: int, *, largest: int) -> float:
    driver = StepDriver(executor, vocab_size=checkpoint.shape.vocab_size, seed=seed, largest=largest)
    driver.open(case.batch, case.length)
    driver.fill(case.context, STEP_TOKENS)
    chunk = STEP_TOKENS if case.phase == "prefill" else 1
    counts = [min(chunk, case.tokens - start) for start in range(0, case.tokens, chunk)]
    # Laid out before the clock starts: these cases measure the executor alone, those of the engine what lays out.
    batches = driver.lay_out(counts)
    started = time.perf_counter()
    driver.run(batches)
    seconds = time.perf_counter() - started
    driver.close()
    return seconds


def _engine_seconds(case: Case, executor: Executor, checkpoint: Checkpoint, seed: int) -> float:
    """All requests are there at once; scheduling, sampling and text are part of it."""
    engine = Engine(
        executor,
        checkpoint.tokenizer(),
        vocab_size=checkpoint.shape.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        max_model_len=case.length,
        max_num_seqs=case.batch,
        max_step_tokens=STEP_TOKENS,
        prefix_caching=False,
    )
    prompts = np.random.default_rng(seed).integers(checkpoint.shape.vocab_size, size=(case.batch, case.prompt)).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=case.tokens, ignore_eos=True)
    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.add(Request(request_id=str(number), prompt_token_ids=tuple(prompt), params=params))
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - started
    engine.close()
    return seconds
