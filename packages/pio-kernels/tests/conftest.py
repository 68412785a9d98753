"""The native library, for tests that call it below the Python API."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import inference_pio.kernels
from inference_pio.interfaces import CacheGroup, GroupTables, StepBatch, TensorInfo, WeightMap, WeightRule
from inference_pio.kernels import load_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import LayerGroup
    from inference_pio.kernels import Parameters, Program

# Elements and bytes of a block, and where its float16 scales and minima are.
BLOCKS = {"Q4_0": (32, 18, (0,)), "Q4_1": (32, 20, (0, 2)), "Q5_0": (32, 22, (0,)), "Q5_1": (32, 24, (0, 2)),
          "Q8_0": (32, 34, (0,)), "Q4_K": (256, 144, (0, 2)), "Q5_K": (256, 176, (0, 2)),
          "Q6_K": (256, 210, (208,))}  # fmt: skip


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The library in the installed package, its functions as ctypes finds them."""
    found = sorted(Path(inference_pio.kernels.__file__).parent.glob("libpio_kernels.*"))
    assert found, "the native library is not built: run `python build_native.py`"
    return ctypes.CDLL(str(found[0]))


def stored_bytes(values: NDArray[np.float32], encoding: str) -> NDArray[np.uint8]:
    """Float32 values in a plain encoding, flat."""
    if encoding == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1)
    return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[encoding]).view(np.uint8).reshape(-1)


def random_blocks(rng: np.random.Generator, encoding: str, rows: int, columns: int) -> NDArray[np.uint8]:
    """Random stored rows of a block format, flat, with values of the order of ``columns ** -0.5``."""
    elements, nbytes, places = BLOCKS[encoding]
    blocks = rng.integers(0, 256, (rows, columns // elements, nbytes), dtype=np.uint8)
    largest = {"Q4_0": 8, "Q4_1": 8, "Q5_0": 16, "Q5_1": 16, "Q8_0": 128, "Q4_K": 500, "Q5_K": 1000, "Q6_K": 4000}
    for place in places:
        scales = rng.normal(size=blocks.shape[:2]) / largest[encoding] / columns**0.5
        blocks[..., place : place + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(-1)


class MemorySource:
    """A ``WeightSource`` of tensors in memory; notes what was released."""

    format = "memory"

    def __init__(self, file: Path) -> None:
        file.touch()
        self.file = file
        self.metadata: dict[str, object] = {}
        self.released: list[str] = []
        self.tensors: dict[str, tuple[TensorInfo, NDArray[np.uint8]]] = {}

    def add(self, name: str, encoding: str, shape: tuple[int, ...], stored: NDArray[np.uint8]) -> None:
        info = TensorInfo(name=name, shape=shape, encoding=encoding, nbytes=stored.nbytes, file=self.file)
        self.tensors[name] = (info, stored)

    def add_values(self, name: str, values: NDArray[np.float32], encoding: str = "F32") -> None:
        self.add(name, encoding, values.shape, stored_bytes(values, encoding))

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def info(self, name: str) -> TensorInfo:
        return self.tensors[name][0]

    def packed(self, name: str) -> NDArray[np.uint8]:
        return self.tensors[name][1]

    def array(self, name: str) -> None:  # noqa: ARG002 - the contract names it
        return None

    def decode(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        info, stored = self.tensors[name]
        assert rows is None
        assert info.encoding == "F32"
        return stored.view(np.float32).reshape(info.shape).copy()

    def release(self, name: str) -> None:
        self.released.append(name)

    def close(self) -> None:
        pass


class Paging:
    """Sequences in pages of a cache: what the engine's bookkeeping does, with pages in random order."""

    def __init__(
        self, rng: np.random.Generator, groups: Sequence[LayerGroup], *, page_size: int, vocab_size: int
    ) -> None:
        self.rng, self.groups, self.page_size, self.vocab_size = rng, tuple(groups), page_size, vocab_size
        self.caches = tuple(CacheGroup(kind=g.kind, window=g.window, num_pages=200) for g in groups)
        self.free = [rng.permutation(200).tolist() for _ in groups]
        self.tables: dict[int, list[list[int]]] = {}
        self.lengths: dict[int, int] = {}
        self.tokens: dict[int, list[int]] = {}

    def batch(self, schedule: dict[int, int], *, every_row: bool = False) -> StepBatch:
        """The next ``count`` random tokens of each sequence; logits of its last one, or of all."""
        counts = np.array([*schedule.values()], dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        past = {sequence: self.lengths.get(sequence, 0) for sequence in schedule}
        positions = [np.arange(past[s], past[s] + n) for s, n in schedule.items()]
        for sequence, count in schedule.items():
            self.lengths[sequence] = past[sequence] + count
            drawn = self.rng.integers(0, self.vocab_size, count).tolist()
            self.tokens[sequence] = self.tokens.get(sequence, []) + drawn
        views = [self._group(index, schedule, past, positions) for index in range(len(self.groups))]
        return StepBatch(
            token_ids=np.array([t for s, n in schedule.items() for t in self.tokens[s][-n:]], dtype=np.int64),
            positions=np.concatenate(positions).astype(np.int64),
            query_starts=starts,
            seq_lens=np.array([self.lengths[s] for s in schedule], dtype=np.int32),
            block_tables=views[0].block_tables,
            slot_mapping=views[0].slot_mapping,
            logit_rows=np.arange(starts[-1]) if every_row else starts[1:].astype(np.int64) - 1,
            others=tuple(views[1:]),
        )

    def _group(
        self, index: int, schedule: dict[int, int], past: dict[int, int], positions: list[NDArray[np.int64]]
    ) -> GroupTables:
        width = max(-(-self.lengths[s] // self.page_size) for s in schedule) + 1
        tables = np.full((len(schedule), width), -1, dtype=np.int32)
        slots = []
        for row, (sequence, places) in enumerate(zip(schedule, positions, strict=True)):
            pages = self.tables.setdefault(sequence, [[] for _ in self.groups])[index]
            while len(pages) * self.page_size < self.lengths[sequence]:
                pages.append(self.free[index].pop())
            window = self.groups[index].window
            behind = 0 if window is None else max(0, past[sequence] - window + 1) // self.page_size
            for left in range(behind):
                if pages[left] >= 0:
                    self.free[index].insert(0, pages[left])
                    pages[left] = -1
            tables[row, : len(pages)] = pages
            slots.append(tables[row, places // self.page_size].astype(np.int64) * self.page_size)
            slots[-1] += places % self.page_size
        return GroupTables(block_tables=tables, slot_mapping=np.concatenate(slots))


@pytest.fixture
def memory_source(tmp_path) -> MemorySource:
    """An empty source of weights."""
    return MemorySource(tmp_path / "weights.bin")


@pytest.fixture(scope="session")
def make_paging() -> type[Paging]:
    """Makes the pages of sequences for steps."""
    return Paging


@pytest.fixture(scope="session")
def make_blocks():
    """Random stored rows of a block format."""
    return random_blocks


@pytest.fixture
def random_parameters(memory_source):
    """Random parameters of a program, loaded as from a checkpoint with one tensor per parameter."""

    def make(program: Program, rng: np.random.Generator, encoding: str = "F32", weights: str = "auto") -> Parameters:
        for name, shape in program.parameters.items():
            if len(shape) > 1 and encoding in BLOCKS:
                rows = int(np.prod(shape[:-1]))
                memory_source.add(name, encoding, shape, random_blocks(rng, encoding, rows, shape[-1]))
            else:
                values = rng.normal(size=shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
                memory_source.add_values(name, values.astype(np.float32), encoding if len(shape) > 1 else "F32")
        rules = tuple(WeightRule(target=name, sources=(name,)) for name in program.parameters)
        tied = program.ops[0].weight == program.ops[-1].weight
        return load_parameters(program, memory_source, WeightMap(rules=rules), tied_head=tied, weights=weights)

    return make
