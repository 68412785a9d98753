"""What row-invariant layers cost beside the dense ones.

    python benchmarks/bench_determinism.py [--json FILE] [--quick] [--threads N]

Shapes are those of SmolLM2-135M, weights are taken from a pool larger than the caches, as in a decode step. Both sides
take turns in random order, so that a busy machine slows both alike; the figure to quote is the median of the ratios of
neighbouring turns, with its quartiles. What attention adds is measured by the benchmark of that name in pio-attention.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from inference_pio.layers import DenseLinear, GatedMLP, InvariantLinear, Linear, LMHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inference_pio.interfaces import LinearMethod

E, F, V, H, K, D = 576, 1536, 49152, 9, 3, 64
POOL_BYTES = 128 * 2**20
LAYERS: dict[str, Callable[[LinearMethod], nn.Module]] = {
    "qkv": lambda method: Linear(E, (H + 2 * K) * D, method=method),
    "output": lambda method: Linear(H * D, E, method=method),
    "mlp": lambda method: GatedMLP(E, F, method=method),
    "head": lambda method: LMHead(E, V, tied_to=None, method=method),
}


def pool(build: Callable[[], nn.Module], dtype: torch.dtype) -> Iterator[nn.Module]:
    """Copies of a module, in turn, that together do not fit into the caches."""
    size = dtype.itemsize * sum(parameter.numel() for parameter in build().parameters())
    copies = [build() for _ in range(max(1, min(48, POOL_BYTES // size)))]
    for module in copies:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        module.to(dtype).requires_grad_(requires_grad=False)
    return cycle(copies)


def ratios(build: Callable[[LinearMethod], nn.Module], dtype: torch.dtype, rows: int, turns: int) -> list[float]:
    """Times of the invariant layer over those of the dense one, turn by turn."""
    methods: dict[str, LinearMethod] = {"invariant": InvariantLinear(), "dense": DenseLinear()}
    pools = {name: pool(lambda method=method: build(method), dtype) for name, method in methods.items()}
    x, names = torch.randn(rows, E).to(dtype), list(pools)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 2):
        random.shuffle(names)
        for name in names:
            module = next(pools[name])
            start = time.perf_counter()
            module(x)
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return [ours / theirs for ours, theirs in zip(times["invariant"], times["dense"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    turns = 8 if arguments.quick else 60
    results = []
    print(f"{arguments.threads} threads\n{'SmolLM2-135M':32} {'times dense':>12} {'quartiles':>12}")
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 8, 32, 512):
                for name, build in LAYERS.items():
                    if name == "head" and rows == 512:
                        continue  # of a prompt only the last row has logits
                    values = ratios(build, dtype, rows, max(8, turns // 4) if name == "head" or rows == 512 else turns)
                    low, middle, high = statistics.quantiles(values, n=4)
                    label = f"{name}, {rows} rows, {str(dtype).removeprefix('torch.')}"
                    print(f"{label:32} {middle:12.2f} {low:7.2f}-{high:.2f}", flush=True)
                    results.append({"name": label, "value": middle, "unit": "times dense", "low": low, "high": high})
    report = {
        "benchmark": "determinism",
        "package": "pio-layers",
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
