"""Packing: stored tensors into tiles, by the native library, on several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import UnsupportedError
from inference_pio.kernels._library import default_threads, load_library
from inference_pio.kernels._numbers import bf16_bits
from inference_pio.kernels._tiles import TILE_ROWS, TileFormat, packed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from inference_pio.interfaces import WeightSource
    from inference_pio.kernels._packed_layout import PackedLayout, PackedPart
    from inference_pio.kernels._weight_plan import Part

    _Order = NDArray[np.int32] | None

_JOB_BYTES = 2**20
"""Stored bytes that one thread packs at a time, about: enough for all threads to have some, and little to wait for."""

# GGML's numbers of its types (enum ggml_type), by which the native library knows encodings.
GGML_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "F32": 0,
        "F16": 1,
        "Q4_0": 2,
        "Q4_1": 3,
        "Q5_0": 6,
        "Q5_1": 7,
        "Q8_0": 8,
        "Q4_K": 12,
        "Q5_K": 13,
        "Q6_K": 14,
        "BF16": 30,
    }
)
# Elements and bytes of a block.
_BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "F32": (1, 4),
        "F16": (1, 2),
        "BF16": (1, 2),
        "Q4_0": (32, 18),
        "Q4_1": (32, 20),
        "Q5_0": (32, 22),
        "Q5_1": (32, 24),
        "Q8_0": (32, 34),
        "Q4_K": (256, 144),
        "Q5_K": (256, 176),
        "Q6_K": (256, 210),
    }
)
_FLOATS: Mapping[str, str] = MappingProxyType({"F64": "<f8", "F32": "<f4", "F16": "<f2"})


@dataclass(frozen=True, slots=True)
class _Job:
    """Some whole strips of a segment, or a tensor's share of a vector.

    Attributes:
        part: What is filled.
        origin: What it is made from.
        first: First row of ``part`` that this job fills, a multiple of 16 in a segment.
        last: The row after the last one.
    """

    part: PackedPart
    origin: Part
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        """Stored bytes that are read."""
        return (self.last - self.first) * _row_bytes(self.origin)


def stored_bytes(part: Part) -> int:
    """Bytes of a run of rows in its file."""
    return part.rows * _row_bytes(part)


def pack_all(layout: PackedLayout, source: WeightSource, data: NDArray[np.uint8], threads: int | None) -> Iterator[int]:
    """Fill ``data`` as ``layout`` says; yields stored bytes as they are done with, and releases each tensor's pages."""
    jobs = [job for part, origins in zip(layout.parts, layout.origins, strict=True) for job in _jobs(part, origins)]
    last = {job.origin.info.name: number for number, job in enumerate(jobs)}
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        done = pool.map(lambda job: _run(job, source, data), jobs)
        for number, (job, _) in enumerate(zip(jobs, done, strict=True)):
            name = job.origin.info.name
            if last[name] == number:
                source.release(name)
            yield job.nbytes


def _jobs(part: PackedPart, origins: tuple[Part, ...]) -> Iterator[_Job]:
    if part.format is None:
        for origin in origins:
            yield _Job(part, origin, origin.row, origin.row + origin.rows)
        return
    (origin,) = origins
    step = TILE_ROWS * max(1, _JOB_BYTES // (TILE_ROWS * max(1, _row_bytes(origin))))
    for first in range(0, part.rows, step):
        yield _Job(part, origin, first, min(first + step, part.rows))


def _run(job: _Job, source: WeightSource, data: NDArray[np.uint8]) -> None:
    part, origin = job.part, job.origin
    target = data[part.offset : part.offset + part.nbytes]
    order = half_split_order(origin.rows, origin.heads) if origin.heads else None
    if part.format is None:
        values = source.decode(origin.info.name)
        target.view(np.float32)[job.first : job.last] = values if order is None else values[order]
        return
    row_bytes = _row_bytes(origin)
    begin = origin.stored * row_bytes
    stored = source.packed(origin.info.name)[begin : begin + origin.rows * row_bytes]
    encoding = origin.info.encoding
    if encoding == "F64" or (part.format == TileFormat.BF16 and encoding != "BF16"):
        _pack_rounded(job, stored, target, order)
    else:
        shape, rows = (part.rows, part.columns), (job.first, job.last)
        pack(part.format, encoding, stored, shape, target, order, rows, name=origin.info.name)


def _pack_rounded(job: _Job, stored: NDArray[np.uint8], target: NDArray[np.uint8], order: _Order) -> None:
    """Pack floating point that the native library cannot pack from, or not into this format."""
    part = job.part
    assert part.format is not None
    lines = stored.reshape(part.rows, -1)
    chosen = lines[job.first : job.last] if order is None else lines[order[job.first : job.last]]
    values = chosen.view(_FLOATS[job.origin.info.encoding]).astype(np.float32)
    encoding, plain = ("BF16", bf16_bits(values)) if part.format == TileFormat.BF16 else ("F32", values)
    strip_bytes = packed_bytes(part.format, TILE_ROWS, part.columns)
    strips = target[job.first // TILE_ROWS * strip_bytes :]
    stored, rows = plain.view(np.uint8).reshape(-1), (0, len(values))
    pack(part.format, encoding, stored, values.shape, strips, None, rows, name=job.origin.info.name)


def pack(
    tile_format: TileFormat,
    encoding: str,
    stored: NDArray[np.uint8],
    shape: tuple[int, ...],
    strips: NDArray[np.uint8],
    row_order: _Order = None,
    rows: tuple[int, int] | None = None,
    *,
    name: str = "a matrix",
) -> None:
    """Pack rows of a matrix natively; the library is called without the interpreter's lock.

    Args:
        tile_format: What it becomes.
        encoding: What it is stored as.
        stored: Its bytes, flat, row by row.
        shape: Rows and columns.
        strips: The packed matrix, flat; only the strips of ``rows`` are written.
        row_order: int32 (rows,): output row ``i`` is stored row ``row_order[i]``; None keeps the order.
        rows: First row, a multiple of 16, and the one after the last; None packs all.
        name: What it is called in errors.

    Raises:
        UnsupportedError: The encoding cannot become this format, or its numbers do not fit it.
        ValueError: The arrays are not of the sizes that ``shape`` says.
    """
    count, columns = shape
    first, last = (0, count) if rows is None else rows
    elements, nbytes = _BLOCKS.get(encoding, (1, 1))
    if columns % elements or stored.nbytes != count * columns // elements * nbytes or not stored.flags.c_contiguous:
        raise ValueError(f"{stored.nbytes} bytes are no matrix {shape} in {encoding}")
    if first % TILE_ROWS or not 0 <= first <= last <= count:
        raise ValueError(f"rows {first} to {last} of {count} do not begin a strip")
    if strips.nbytes < packed_bytes(tile_format, last, columns) or not strips.flags.c_contiguous:
        raise ValueError(f"{strips.nbytes} bytes do not hold {last} rows of {columns} in {tile_format.label}")
    if row_order is not None and (row_order.dtype != np.int32 or row_order.shape != (count,)):
        raise ValueError(f"the order of {count} rows is {row_order.dtype} {row_order.shape}")
    if row_order is not None and count and row_order.view(np.uint32).max() >= count:
        raise ValueError(f"the order of {count} rows names row {row_order.view(np.uint32).max()}")
    number = GGML_TYPES.get(encoding, -1)
    status = load_library().pio_pack(
        int(tile_format),
        number,
        stored.ctypes.data,
        count,
        columns,
        None if row_order is None else row_order.ctypes.data,
        strips.ctypes.data,
        first // TILE_ROWS,
        -(-last // TILE_ROWS),
    )
    if status != 0:
        problem = "" if status == -1 else ": it has scales beyond float16 or that are not finite"
        raise UnsupportedError(
            f"{name} {shape} stored as {encoding} cannot be packed as {tile_format.label}{problem}",
            hint="executor='torch'",
        )


def half_split_order(rows: int, heads: int) -> NDArray[np.int32]:
    """Where the rows of heads in half-split order ``a0 a1 ... b0 b1 ...`` are stored as ``a0 b0 a1 b1 ...``."""
    pairs = np.arange(rows, dtype=np.int32).reshape(heads, -1, 2)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1)).reshape(rows)


def _row_bytes(part: Part) -> int:
    info = part.info
    return info.nbytes // max(1, info.shape[0] if len(info.shape) == 1 else prod(info.shape[:-1]))
