"""What the invariant backend costs beside the SDPA backend, over a paged cache.

    python benchmarks/bench_determinism.py [--json FILE] [--quick] [--threads N]

Shapes are those of SmolLM2-135M. Both sides take turns in random order, so that a busy machine slows both alike; the
figure to quote is the median of the ratios of neighbouring turns, with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from pathlib import Path

import torch

from inference_pio.attention import PagedKVCache, SDPAAttention, make_batch
from inference_pio.attention._invariant import InvariantAttention
from inference_pio.interfaces import AttentionSpec

SPEC = AttentionSpec(num_heads=9, num_kv_heads=3, head_dim=64)
CASES = {
    "decode, 1 of 512": ([1], [512]),
    "decode, 8 of 512": ([1] * 8, [512] * 8),
    "decode, 32 of 512": ([1] * 32, [512] * 32),
    "prefill, 512": ([512], [512]),
    "chunk, 128 after 512": ([128], [640]),
}


def ratios(case: tuple[list[int], list[int]], dtype: torch.dtype, turns: int) -> tuple[list[float], float]:
    """Times of the invariant backend over those of SDPA, turn by turn, and its median time in microseconds."""
    query_lens, seq_lens = case
    counts = [-(-length // 16) for length in seq_lens]
    pages = torch.randperm(sum(counts)).tolist()
    tables = [[pages.pop() for _ in range(count)] for count in counts]
    layer = PagedKVCache([SPEC], num_pages=sum(counts), page_size=16, dtype=dtype).layer(0)
    layer.key_pages.normal_()
    layer.value_pages.normal_()
    batch = make_batch(query_lens, seq_lens, tables, page_size=16)
    q = torch.randn(sum(query_lens), SPEC.num_heads, SPEC.head_dim).to(dtype)
    backends = [InvariantAttention(), SDPAAttention()]
    times: dict[str, list[float]] = {backend.name: [] for backend in backends}
    for turn in range(turns + 3):
        random.shuffle(backends)
        for backend in backends:
            start = time.perf_counter()
            backend.attend_cached(q, layer, batch, SPEC)
            if turn >= 3:
                times[backend.name].append(time.perf_counter() - start)
    both = zip(times["invariant"], times["sdpa"], strict=True)
    return [ours / theirs for ours, theirs in both], 1e6 * statistics.median(times["invariant"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    turns = 10 if arguments.quick else 60
    results = []
    print(
        f"{arguments.threads} threads\n{'one layer of SmolLM2-135M':40} {'us':>9} {'times sdpa':>11} {'quartiles':>12}"
    )
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for name, case in CASES.items():
                values, microseconds = ratios(case, dtype, turns)
                low, middle, high = statistics.quantiles(values, n=4)
                label = f"{name}, {str(dtype).removeprefix('torch.')}"
                print(f"{label:40} {microseconds:9.0f} {middle:11.2f} {low:6.2f}-{high:.2f}", flush=True)
                row = {"name": label, "value": middle, "unit": "times sdpa", "low": low, "high": high}
                results.append({**row, "microseconds": microseconds})
    report = {
        "benchmark": "determinism",
        "package": "pio-attention",
        "results": results,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpus": os.cpu_count(),
            "threads": arguments.threads,
        },
    }
    line = json.dumps(report)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
