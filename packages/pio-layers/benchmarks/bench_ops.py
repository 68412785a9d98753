"""Microseconds per call of each layer, beside the modules of transformers that it replaces.

    python benchmarks/bench_ops.py [--json FILE] [--quick] [--threads N]

Shapes are those of SmolLM2-135M. Both sides take turns in random order, so that a busy machine slows both alike; the
ratio of the medians is the figure to quote. Weights are taken from a pool larger than the caches, as in a decode step.
What reads a weight also reports the share of the memory's read bandwidth, measured first.
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
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as llama

from inference_pio.interfaces import RopeParameters
from inference_pio.layers import Embedding, GatedMLP, Linear, LMHead, RMSNorm, RotaryEmbedding, apply_rotary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[[], object]
    Result = dict[str, object]

E, F, V, H, K, D = 576, 1536, 49152, 9, 3, 64
POOL_BYTES = 128 * 2**20
CONFIG = LlamaConfig(
    hidden_size=E,
    intermediate_size=F,
    num_attention_heads=H,
    num_key_value_heads=K,
    vocab_size=V,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
)


def alternate(sides: dict[str, Call], turns: int) -> dict[str, float]:
    """Median microseconds of each side, taken in random order turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(turns + 3):
        random.shuffle(names)
        for name in names:
            start = time.perf_counter()
            sides[name]()
            if turn >= 3:
                times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def read_bandwidth() -> float:
    """GB/s of a sum over 256 MiB."""
    data = torch.ones(64 * 2**20)
    return data.nbytes / alternate({"sum": data.sum}, 10)["sum"] / 1e3


def random_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return module.to(dtype).requires_grad_(requires_grad=False)


def pool(build: Callable[[], nn.Module], dtype: torch.dtype) -> Iterator[nn.Module]:
    """Copies of a module, in turn, that together do not fit into the caches."""
    first = random_weights(build(), dtype)
    size = sum(parameter.nbytes for parameter in first.parameters())
    copies = max(1, min(64, POOL_BYTES // size))
    return cycle([first, *(random_weights(build(), dtype) for _ in range(copies - 1))])


def compare_modules(
    name: str,
    dtype: torch.dtype,
    x: torch.Tensor,
    ours: Callable[[], nn.Module],
    theirs: Callable[[], nn.Module],
    turns: int,
) -> Result:
    pools = {"ours": pool(ours, dtype), "transformers": pool(theirs, dtype)}
    size = sum(parameter.nbytes for parameter in next(pools["ours"]).parameters())
    sides: dict[str, Call] = {side: lambda modules=modules: next(modules)(x) for side, modules in pools.items()}
    return result(name, dtype, x.shape[0], alternate(sides, turns), size)


def result(name: str, dtype: torch.dtype, tokens: int, times: dict[str, float], size: int = 0) -> Result:
    row: Result = {
        "name": f"{name}, {str(dtype)[6:]}, N={tokens}",
        "value": times["ours"],
        "unit": "us",
        "peer": "transformers",
        "peer_value": times["transformers"],
        "times_faster": times["transformers"] / times["ours"],
    }
    if size:
        row["weight_gb_per_s"] = size / times["ours"] / 1e3
    return row


def rotate_both(dtype: torch.dtype, tokens: int, turns: int) -> list[Result]:
    """Angles of a step, and queries and keys turned by them, as a model does it."""
    ours, theirs = RotaryEmbedding(D, RopeParameters(theta=1e5), max_position=8192), llama.LlamaRotaryEmbedding(CONFIG)
    positions = torch.arange(tokens)
    qk = torch.randn(tokens, H + K, D).to(dtype)
    q, k = (part.transpose(0, 1)[None].contiguous() for part in qk.split((H, K), dim=1))
    angles = ours.cos_sin(positions, dtype=dtype)
    their_angles = theirs(q, positions[None])
    step: dict[str, Call] = {
        "ours": lambda: ours.cos_sin(positions, dtype=dtype),
        "transformers": lambda: theirs(q, positions[None]),
    }
    layer: dict[str, Call] = {
        "ours": lambda: apply_rotary(qk, *angles),
        "transformers": lambda: llama.apply_rotary_pos_emb(q, k, *their_angles),
    }
    return [
        result("rotary angles, per step", dtype, tokens, alternate(step, turns)),
        result("rotary, queries and keys", dtype, tokens, alternate(layer, turns)),
    ]


def measure(dtype: torch.dtype, tokens: int, turns: int) -> Iterator[Result]:
    x = torch.randn(tokens, E).to(dtype)
    yield compare_modules("RMSNorm", dtype, x, lambda: RMSNorm(E, eps=1e-5), lambda: llama.LlamaRMSNorm(E, 1e-5), turns)
    yield from rotate_both(dtype, tokens, turns)
    width = (H + 2 * K) * D
    yield compare_modules(
        "Linear qkv", dtype, x, lambda: Linear(E, width), lambda: nn.Linear(E, width, bias=False), turns
    )
    yield compare_modules("GatedMLP", dtype, x, lambda: GatedMLP(E, F), lambda: llama.LlamaMLP(CONFIG), turns)
    yield compare_modules(
        "LMHead", dtype, x, lambda: LMHead(E, V, tied_to=None), lambda: nn.Linear(E, V, bias=False), max(turns // 4, 5)
    )
    words, peer = random_weights(Embedding(V, E), dtype), random_weights(nn.Embedding(V, E), dtype)
    ids = torch.randint(0, V, (tokens,))
    times = alternate({"ours": lambda: words(ids), "transformers": lambda: peer(ids)}, turns)
    yield result("Embedding", dtype, tokens, times)


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
    results: list[Result] = []
    with torch.inference_mode():
        limit = read_bandwidth()
        print(f"{arguments.threads} threads, read bandwidth {limit:.1f} GB/s")
        print(f"{'us per call':44} {'ours':>10} {'transformers':>13} {'ratio':>6} {'GB/s':>6} {'of limit':>8}")
        for dtype in (torch.float32, torch.bfloat16):
            for tokens in (1, 8) if arguments.quick else (1, 8, 64):
                for row in measure(dtype, tokens, turns):
                    results.append(row)
                    speed = row.get("weight_gb_per_s")
                    tail = f"{speed:6.1f} {speed / limit:8.0%}" if isinstance(speed, float) and speed > 1 else ""
                    figures = f"{row['value']:10.1f} {row['peer_value']:13.1f} {row['times_faster']:6.2f}"
                    print(f"{row['name']:44} {figures} {tail}", flush=True)
    report = {
        "benchmark": "ops",
        "package": "pio-layers",
        "results": results,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpus": os.cpu_count(),
            "threads": arguments.threads,
            "read_gb_per_s": limit,
        },
    }
    line = json.dumps(report)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
