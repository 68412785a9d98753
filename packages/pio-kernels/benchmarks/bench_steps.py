"""Steps of a model of SmolLM2-135M's shape with random Q4_0 weights and a Q8_0 table, on the native runtime.

    python benchmarks/bench_steps.py [--json FILE] [--quick] [--threads N]

Prints a table, then one JSON line. Decoding is told as share of the bandwidth that this run measured: at batch 1 a step
reads every weight once.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import CacheGroup, LayerGroup, StepBatch, TensorInfo, WeightMap, WeightRule
from inference_pio.kernels import PackedStore, ProgramBuilder, Runtime, load_parameters, measure_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from inference_pio.kernels import Program

LAYERS, HEADS, KV_HEADS, SIZE, WIDTH, INNER, VOCAB = 30, 9, 3, 64, 576, 1536, 49152
PAGE = 16
BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34}


class RandomSource:
    """A checkpoint of random blocks: one tensor per parameter."""

    format = "memory"
    metadata: dict[str, object] = {}  # noqa: RUF012 - never changed

    def __init__(self, program: Program, file: Path) -> None:
        rng = np.random.default_rng(0)
        file.touch()
        self._tensors: dict[str, tuple[TensorInfo, NDArray[np.uint8]]] = {}
        for name, shape in program.parameters.items():
            encoding = "F32" if len(shape) == 1 else "Q8_0" if name == "table" else "Q4_0"
            if encoding == "F32":
                stored = np.ones(shape, dtype=np.float32).view(np.uint8)
            else:
                blocks = rng.integers(0, 256, (shape[0] * shape[1] // 32, BLOCK_BYTES[encoding]), dtype=np.uint8)
                blocks[:, :2] = np.array([0.001], dtype=np.float16).view(np.uint8)
                stored = blocks.reshape(-1)
            info = TensorInfo(name=name, shape=shape, encoding=encoding, nbytes=stored.nbytes, file=file)
            self._tensors[name] = (info, stored)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, name: str) -> TensorInfo:
        return self._tensors[name][0]

    def packed(self, name: str) -> NDArray[np.uint8]:
        return self._tensors[name][1]

    def array(self, name: str) -> NDArray[np.generic] | None:
        info, stored = self._tensors[name]
        return stored.view(np.float32).reshape(info.shape) if info.encoding == "F32" else None

    def decode(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        info, stored = self._tensors[name]
        return stored.view(np.float32).reshape(info.shape)[slice(None) if rows is None else rows].copy()

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is open."""


def model() -> Program:
    builder = ProgramBuilder(vocab_size=VOCAB, hidden_size=WIDTH, eps=1e-5)
    x = builder.embed("table")
    rotary = builder.rotary(tuple(100000.0 ** (-i / (SIZE // 2)) for i in range(SIZE // 2)))
    for layer in range(LAYERS):
        qkv = builder.linear(x, f"{layer}.qkv", (HEADS + 2 * KV_HEADS) * SIZE, out="qkv", norm=f"{layer}.norm")
        attended = builder.attention(qkv, layer=layer, heads=HEADS, kv_heads=KV_HEADS, head_size=SIZE, rotary=rotary)
        builder.add_linear(attended, f"{layer}.output", to=x)
        inner = builder.gated(x, f"{layer}.gate_up", 2 * INNER, out="inner", norm=f"{layer}.mlp_norm")
        builder.add_linear(inner, f"{layer}.down", to=x)
    return builder.head(x, "table", norm="norm")


def batch(sequences: int, past: int, count: int) -> StepBatch:
    """``count`` more tokens for each of ``sequences`` sequences of ``past`` tokens; logits of their last ones."""
    positions = np.tile(np.arange(past, past + count), sequences)
    pages = -(-(past + count) // PAGE)
    tables = np.arange(sequences * pages, dtype=np.int32).reshape(sequences, pages)
    owner = np.repeat(np.arange(sequences), count)
    return StepBatch(
        token_ids=np.arange(sequences * count) % 32,
        positions=positions,
        query_starts=(np.arange(sequences + 1) * count).astype(np.int32),
        seq_lens=np.full(sequences, past + count, dtype=np.int32),
        block_tables=tables,
        slot_mapping=tables[owner, positions // PAGE].astype(np.int64) * PAGE + positions % PAGE,
        logit_rows=np.arange(1, sequences + 1) * count - 1,
    )


def prefill_ops(program: Program, length: int) -> float:
    """Operations of the matrices, a multiply-add being 2: all for every token, the head for the last one alone."""
    sizes = {name: shape[0] * shape[1] for name, shape in program.parameters.items() if len(shape) == 2}
    head = sizes.pop("table")
    return 2.0 * (length * sum(sizes.values()) + head)


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(quick: bool, threads: int | None) -> list[dict[str, object]]:
    program = model()
    limits = measure_limits(threads)
    results: list[dict[str, object]] = [
        {"name": "read bandwidth", "value": limits["read_gb_per_s"], "unit": "GB/s"},
        {"name": "int8 products", "value": limits["int8_gop_per_s"], "unit": "GOP/s"},
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = RandomSource(program, Path(folder) / "weights")
        weight_map = WeightMap(rules=tuple(WeightRule(target=n, sources=(n,)) for n in program.parameters))

        def load(cache: PackedStore | None) -> object:
            return load_parameters(program, source, weight_map, tied_head=True, cache=cache, threads=threads)

        store = PackedStore(Path(folder) / "packed")
        results.append({"name": "packing", "value": 1e3 * median_seconds(lambda: load(None), 3), "unit": "ms"})
        results.append({"name": "packed copy", "value": 1e3 * median_seconds(lambda: load(store), 5), "unit": "ms"})
        parameters = load_parameters(program, source, weight_map, tied_head=True, threads=threads)
    groups = [LayerGroup(kind="full", window=None, layers=tuple(range(LAYERS)))]
    caches = [CacheGroup(kind="full", num_pages=32 * 8)]
    with Runtime(program, parameters, caches, groups, page_size=PAGE, max_tokens=512, threads=threads) as runtime:
        repeats = 10 if quick else 100
        for sequences in (1, 8, 32):
            step = batch(sequences, 64, 1)
            seconds = median_seconds(lambda step=step: runtime.step(step), repeats)
            results.append(
                {
                    "name": f"decode, batch {sequences}",
                    "value": sequences / seconds,
                    "unit": "tokens/s",
                    "share_of_bandwidth": parameters.nbytes / seconds / 1e9 / limits["read_gb_per_s"],
                }
            )
        for length in (128,) if quick else (128, 512):
            step = batch(1, 0, length)
            seconds = median_seconds(lambda step=step: runtime.step(step), 3)
            results.append(
                {
                    "name": f"prefill {length}",
                    "value": length / seconds,
                    "unit": "tokens/s",
                    "share_of_int8": prefill_ops(program, length) / seconds / 1e9 / limits["int8_gop_per_s"],
                }
            )
        results.append({"name": "threads", "value": runtime.threads, "unit": "threads", "instruction_set": runtime.isa})
    return results


def python_overhead() -> dict[str, object]:
    """What Python adds to each step: checks, addresses, the call; on a model that computes next to nothing."""
    builder = ProgramBuilder(vocab_size=32, hidden_size=32, eps=1e-5)
    x = builder.embed("table")
    qkv = builder.linear(x, "qkv", 96, out="qkv")
    builder.add_linear(builder.attention(qkv, layer=0, heads=1, kv_heads=1, head_size=32), "output", to=x)
    program = builder.head(x, "table")
    with tempfile.TemporaryDirectory() as folder:
        source = RandomSource(program, Path(folder) / "weights")
        weight_map = WeightMap(rules=tuple(WeightRule(target=n, sources=(n,)) for n in program.parameters))
        parameters = load_parameters(program, source, weight_map, tied_head=True)
    groups = [LayerGroup(kind="full", window=None, layers=(0,))]
    caches = [CacheGroup(kind="full", num_pages=64)]
    with Runtime(program, parameters, caches, groups, page_size=PAGE, max_tokens=8, threads=1) as runtime:
        step = batch(1, 0, 1)
        seconds = median_seconds(lambda: runtime.step(step), 2000)
    return {"name": "smallest step", "value": 1e6 * seconds, "unit": "us"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    results = [*measure(arguments.quick, arguments.threads), python_overhead()]
    for result in results:
        shares = {"bandwidth": result.get("share_of_bandwidth"), "int8 products": result.get("share_of_int8")}
        told = "".join(f"  {share:.0%} of {limit}" for limit, share in shares.items() if share is not None)
        print(f"{result['name']:20} {result['value']:12.1f} {result['unit']}{told}")
    record = {
        "benchmark": "steps",
        "package": "pio-kernels",
        "results": results,
        "machine": {"machine": platform.machine(), "system": platform.system(), "processor": platform.processor()},
    }
    line = json.dumps(record)
    print(line)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
