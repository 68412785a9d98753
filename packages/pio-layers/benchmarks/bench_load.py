"""How fast weights stream into a model, beside the plain way: an array per tensor, then ``load_state_dict``.

    python benchmarks/bench_load.py [--json FILE] [--quick]

A checkpoint of random numbers is written to a temporary file and read through a mapping, warm. Both sides take turns;
the ratio of the medians is the figure to quote. Peak memory is that of one load in a process of its own, beyond what
the process held before, as a multiple of the parameters' size (Linux only, not with --quick).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from inference_pio.interfaces import TensorInfo, WeightMap, WeightRule
from inference_pio.layers import GatedMLP, Linear, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

E, F = 1024, 4096
PARTS = {"q": (E, E), "k": (E // 4, E), "v": (E // 4, E), "gate": (F, E), "up": (F, E), "down": (E, F)}
BLOCK = 32
CASES = {
    "F32 mapped": ("F32", torch.float32, False, 0),
    "BF16 mapped": ("BF16", torch.bfloat16, False, 0),
    "F32 to bfloat16": ("F32", torch.bfloat16, False, 0),
    "BF16 merged": ("BF16", torch.bfloat16, True, 0),
    "F32 merged, rows reordered": ("F32", torch.float32, True, 16),
    "Q8_0 to float32, merged, rows reordered": ("Q8_0", torch.float32, True, 16),
    "Q8_0 to bfloat16, merged, rows reordered": ("Q8_0", torch.bfloat16, True, 16),
}


class FileSource:
    """One file of equally encoded tensors, one after the other, behind a copy-on-write mapping."""

    format = "gguf"

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, int]], encoding: str) -> None:
        self.metadata: dict[str, object] = {}
        with path.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = np.frombuffer(self._mapping, dtype=np.uint8)
        self._infos: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self._encoding = encoding
        offset = 0
        for name, shape in shapes.items():
            nbytes = stored_bytes(shape, encoding)
            self._infos[name] = TensorInfo(name=name, shape=shape, encoding=encoding, nbytes=nbytes, file=path)
            self._offsets[name] = offset
            offset += nbytes

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Header entry."""
        return self._infos[name]

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Stored bytes."""
        start = self._offsets[name]
        return self._bytes[start : start + self._infos[name].nbytes]

    def array(self, name: str) -> NDArray[np.generic] | None:
        """A view, or None for blocks."""
        if self._encoding == "Q8_0":
            return None
        dtype = {"F32": np.float32, "BF16": np.uint16}[self._encoding]
        return self.packed(name).view(dtype).reshape(self._infos[name].shape)

    def decode(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Rows in float32."""
        rows = rows or slice(None)
        array = self.array(name)
        if array is None:
            columns = self._infos[name].shape[1]
            blocks = self.packed(name).reshape(-1, columns // BLOCK, BLOCK + 2)[rows]
            scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
            return (blocks[..., 2:].view(np.int8) * scales).reshape(-1, columns)
        if self._encoding == "BF16":
            return (array[rows].astype(np.uint32) << 16).view(np.float32)
        return array[rows].astype(np.float32)

    def release(self, name: str) -> None:
        """Drop the pages that lie wholly in the tensor."""
        start, stop = self._offsets[name], self._offsets[name] + self._infos[name].nbytes
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and first < last:
            self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """The mapping goes with its last view."""


def stored_bytes(shape: tuple[int, int], encoding: str) -> int:
    elements = shape[0] * shape[1]
    return {"F32": 4 * elements, "BF16": 2 * elements, "Q8_0": elements // BLOCK * (BLOCK + 2)}[encoding]


class Layer(nn.Module):
    """The matrices of one decoder layer, merged or one by one."""

    def __init__(self, *, merged: bool) -> None:
        super().__init__()
        if merged:
            self.qkv, self.mlp = Linear(E, E + E // 2), GatedMLP(E, F)
        else:
            for name, (rows, columns) in PARTS.items():
                self.add_module(name, Linear(columns, rows))


def layer_rules(index: int, heads: int, *, merged: bool) -> Iterator[WeightRule]:
    if not merged:
        for name in PARTS:
            yield WeightRule(target=f"{index}.{name}.weight", sources=(f"{index}.{name}",))
        return
    qkv = tuple(f"{index}.{name}" for name in "qkv")
    yield WeightRule(target=f"{index}.qkv.weight", sources=qkv, heads=(heads, heads // 4, 0))
    yield WeightRule(target=f"{index}.mlp.gate_up.weight", sources=(f"{index}.gate", f"{index}.up"))
    yield WeightRule(target=f"{index}.mlp.down.weight", sources=(f"{index}.down",))


def build(layers: int, *, merged: bool, device: str) -> nn.Module:
    with torch.device(device):
        return nn.ModuleList(Layer(merged=merged) for _ in range(layers))


def stream(path: Path, layers: int, case: str) -> nn.Module:
    """Our side."""
    encoding, dtype, merged, heads = CASES[case]
    module = build(layers, merged=merged, device="meta")
    rules = tuple(rule for index in range(layers) for rule in layer_rules(index, heads, merged=merged))
    source = FileSource(path, shapes_of(layers), encoding)
    load_weights(module, source, WeightMap(rules=rules), dtype=dtype, device=torch.device("cpu"))
    return module


def plain(path: Path, layers: int, case: str) -> nn.Module:
    """The plain side: decode whole tensors, cast, reorder, concatenate, copy."""
    encoding, dtype, merged, heads = CASES[case]
    module = build(layers, merged=merged, device="cpu").to(dtype)
    source = FileSource(path, shapes_of(layers), encoding)
    state = {}
    for index in range(layers):
        for rule in layer_rules(index, heads, merged=merged):
            parts = []
            for name, count in zip(rule.sources, rule.heads or (0,) * len(rule.sources), strict=True):
                part = torch.from_numpy(source.decode(name)).to(dtype)
                if count:
                    part = part.view(count, -1, 2, part.shape[1]).transpose(1, 2).reshape(part.shape)
                parts.append(part)
            state[rule.target] = torch.cat(parts)
    module.load_state_dict(state)
    return module


def shapes_of(layers: int) -> dict[str, tuple[int, int]]:
    return {f"{index}.{name}": shape for index in range(layers) for name, shape in PARTS.items()}


def write(path: Path, layers: int, encoding: str) -> None:
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for shape in shapes_of(layers).values():
            values = rng.standard_normal(shape, dtype=np.float32)
            if encoding == "BF16":
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            elif encoding == "F32":
                file.write(values.tobytes())
            else:
                blocks = np.empty((values.size // BLOCK, BLOCK + 2), np.uint8)
                blocks[:, :2] = np.full(len(blocks), 0.01, np.float16).view(np.uint8).reshape(-1, 2)
                blocks[:, 2:] = np.clip(values.reshape(-1, BLOCK) * 100, -127, 127).astype(np.int8).view(np.uint8)
                file.write(blocks.tobytes())


def alternate(sides: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each side; one warm-up each, then turns taken alternately."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(path: Path, layers: int, case: str, side: str) -> float:
    """Peak memory of one load in a fresh process over the size of the parameters."""
    command = [sys.executable, __file__, "--peak", side, str(path), str(layers), case]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def status(key: str) -> int:
    """A memory figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def print_peak(side: str, path: Path, layers: int, case: str) -> None:
    torch.ones(4).to(torch.bfloat16).sum()  # first use of torch takes memory of its own
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # importing torch had a peak too: forget it
    before = status("VmRSS")
    module = (stream if side == "ours" else plain)(path, layers, case)
    size = sum(parameter.nbytes for parameter in module.parameters())
    print((status("VmHWM") - before) / size)


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    layers, turns = (1, 1) if arguments.quick else (3, 5)
    results: list[dict[str, object]] = []
    print(f"{'load':42} {'ms':>8} {'GB/s out':>8} {'plain ms':>9} {'ratio':>6} {'peak':>6} {'plain':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for case, (encoding, dtype, _, _) in CASES.items():
            path = Path(folder) / encoding
            if not path.exists():
                write(path, layers, encoding)
            times = alternate(
                {
                    "ours": lambda path=path, case=case: stream(path, layers, case),
                    "plain": lambda path=path, case=case: plain(path, layers, case),
                },
                turns,
            )
            size = sum(rows * columns for rows, columns in shapes_of(layers).values()) * dtype.itemsize
            ours = theirs = None
            if not arguments.quick and sys.platform == "linux":
                ours, theirs = (peak(path, layers, case, side) for side in ("ours", "plain"))
            row: dict[str, object] = {
                "name": case,
                "value": 1e3 * times["ours"],
                "unit": "ms",
                "gb_per_s": size / times["ours"] / 1e9,
                "peer": "load_state_dict",
                "peer_value": 1e3 * times["plain"],
                "times_faster": times["plain"] / times["ours"],
                "peak_over_parameters": ours,
                "peer_peak_over_parameters": theirs,
            }
            results.append(row)
            figures = f"{row['value']:8.1f} {row['gb_per_s']:8.2f} {row['peer_value']:9.1f} {row['times_faster']:6.2f}"
            peaks = "" if ours is None or theirs is None else f"{ours:6.2f} {theirs:6.2f}"
            print(f"{case:42} {figures} {peaks}", flush=True)
    report = {
        "benchmark": "load",
        "package": "pio-layers",
        "results": results,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
    line = json.dumps(report)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
