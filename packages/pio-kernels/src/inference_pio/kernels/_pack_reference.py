"""Packing in NumPy: what ``pio_pack`` does natively, for tests. Slow.

The block formats are those of GGML (``ggml-quants.h``): blocks of 32 elements, or super-blocks of 256 whose sub-blocks
have scales of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference_pio.kernels._numbers import bf16_values
from inference_pio.kernels._tiles import MINIMUM_STEPS, TILE_INPUTS, TILE_ROWS, TileFormat, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # Quants (rows, blocks, 32) and the numbers behind them (rows, blocks, 1 or 2). What NumPy makes of operations with
    # Python's integers is uint8 too, which its stubs do not know.
    _Block = tuple[NDArray[Any], NDArray[np.float16]]


def pack_reference(
    tile_format: TileFormat,
    encoding: str,
    stored: NDArray[np.uint8],
    rows: int,
    columns: int,
    row_order: NDArray[np.int32] | None = None,
) -> NDArray[np.uint8]:
    """Packed strips, flat, of a stored matrix.

    Args:
        tile_format: What it becomes.
        encoding: What it is stored as: a plain format, or the name of a GGML block format.
        stored: Its bytes, flat, row by row.
        rows: Stored rows.
        columns: Elements per row.
        row_order: Output row ``i`` is stored row ``row_order[i]``; None keeps the order.

    Raises:
        ValueError: The encoding cannot become this format.
    """
    lines = stored.reshape(rows, -1)[slice(None) if row_order is None else row_order]
    if tile_format == TileFormat.Q8_SPLIT:
        return split(pack_reference(TileFormat.Q8, encoding, stored, rows, columns, row_order), columns)
    if tile_format >= TileFormat.BF16:
        return _pack_floats(tile_format, encoding, lines, columns)
    if tile_format == TileFormat.Q8 and encoding in {"F32", "F16", "BF16"}:
        quants, numbers = _quantise(_plain(encoding, lines))
    elif (tile_format, encoding) in _BLOCKS:
        quants, numbers = _BLOCKS[tile_format, encoding](lines)
    else:
        raise ValueError(f"{encoding} cannot be packed as {tile_format.label}")
    return _assemble(tile_format, quants, numbers)


def _quantise(values: NDArray[np.float32]) -> _Block:
    """Blocks of 32 to ``d (q - 128)``, d the least float16 at which no quant is beyond 127."""
    blocks = _padded(values, 1, TILE_INPUTS).reshape(len(values), -1, TILE_INPUTS)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    scales = (largest / np.float32(127)).astype(np.float16)
    low = scales.astype(np.float32) * np.float32(127) < largest
    scales = np.where(low, np.nextafter(scales, np.float16(np.inf)), scales)
    inverse = np.divide(np.float32(1), scales.astype(np.float32), out=np.zeros_like(largest), where=largest > 0)
    return (blocks * inverse + np.float32(128.5)).astype(np.uint8), scales


def _plain(encoding: str, lines: NDArray[np.uint8]) -> NDArray[np.float32]:
    if encoding == "BF16":
        return bf16_values(lines.view("<u2"))
    return lines.view("<f4" if encoding == "F32" else "<f2").astype(np.float32)


def _pack_floats(tile_format: TileFormat, encoding: str, lines: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    if encoding != tile_format.name:
        raise ValueError(f"{encoding} cannot be packed as {tile_format.label}")
    plain = lines.view("<f4" if tile_format == TileFormat.F32 else "<u2").reshape(-1, columns)
    padded = _padded(_padded(plain, 0, TILE_ROWS), 1, TILE_INPUTS)
    tiles = padded.reshape(-1, TILE_ROWS, padded.shape[1] // TILE_INPUTS, TILE_INPUTS).transpose(0, 2, 1, 3)
    if tile_format == TileFormat.BF16:  # [p, r, c] is input 2 p + c
        ordered = tiles.reshape(*tiles.shape[:3], 16, 2).transpose(0, 1, 3, 2, 4)
    else:  # [k, r]
        ordered = tiles.transpose(0, 1, 3, 2)
    return np.ascontiguousarray(ordered).view(np.uint8).reshape(-1)


def _q4_0(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 18)
    return _nibbles(blocks[..., 2:]), _halves(blocks[..., :2])


def _q4_1(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 20)
    return _nibbles(blocks[..., 4:]), _halves(blocks[..., :4])


def _q5_0(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 22)
    return _nibbles(blocks[..., 6:]) | _bits(blocks[..., 2:6]) << 4, _halves(blocks[..., :2])


def _q5_1(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 24)
    return _nibbles(blocks[..., 8:]) | _bits(blocks[..., 4:8]) << 4, _halves(blocks[..., :4])


def _q8_0(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 34)
    return blocks[..., 2:] ^ np.uint8(128), _halves(blocks[..., :2])  # int8 q is stored as q + 128


def _q4_k(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 144)
    return _k_nibbles(blocks[..., 16:]), _k_numbers(blocks)


def _q5_k(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 176)
    # Bit j of byte i belongs to element i of sub-block j.
    fifth = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k_nibbles(blocks[..., 48:]) | fifth.reshape(len(lines), -1, 32) << 4, _k_numbers(blocks)


def _q6_k(lines: NDArray[np.uint8]) -> _Block:
    blocks = lines.reshape(len(lines), -1, 210)
    low: NDArray[Any] = blocks[..., :128].reshape(
        *blocks.shape[:2], 2, 1, 2, 32
    )  # per half: low nibbles of 64, then high ones
    low = low >> np.array([0, 4], dtype=np.uint8)[:, None, None] & 15
    high: NDArray[Any] = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32)
    high = high >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
    quants = low.reshape(*blocks.shape[:2], 2, 4, 32) | high << 4
    scales = blocks[..., 192:208].view(np.int8).astype(np.float32)
    numbers = (_halves(blocks[..., 208:]).astype(np.float32) * scales).astype(np.float16)
    return quants.reshape(len(lines), -1, 32), numbers.reshape(len(lines), -1, 2)


_BLOCKS = {
    (TileFormat.Q4, "Q4_0"): _q4_0,
    (TileFormat.Q4_MIN, "Q4_1"): _q4_1,
    (TileFormat.Q5, "Q5_0"): _q5_0,
    (TileFormat.Q5_MIN, "Q5_1"): _q5_1,
    (TileFormat.Q8, "Q8_0"): _q8_0,
    (TileFormat.Q4_MIN, "Q4_K"): _q4_k,
    (TileFormat.Q5_MIN, "Q5_K"): _q5_k,
    (TileFormat.Q6, "Q6_K"): _q6_k,
}


def _nibbles(data: NDArray[np.uint8]) -> NDArray[Any]:
    """(..., 16) bytes to (..., 32): the low halves are elements 0..15, the high ones 16..31."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _bits(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., 4) bytes to (..., 32) bits, lowest first."""
    return np.unpackbits(data, axis=-1, bitorder="little")


def _halves(data: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(data).view("<f2")


def _k_nibbles(data: NDArray[np.uint8]) -> NDArray[Any]:
    """(rows, blocks, 128) bytes to (rows, 8 blocks, 32): 32 bytes hold one sub-block low, the next one high."""
    pairs = data.reshape(*data.shape[:2], 4, 32)
    return np.stack([pairs & 15, pairs >> 4], axis=3).reshape(len(data), -1, 32)


def _k_numbers(blocks: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Scale and minimum of each sub-block, (rows, 8 blocks, 2), from the 6-bit numbers of Q4_K and Q5_K."""
    factors = _halves(blocks[..., :4]).astype(np.float32)  # d, dmin
    packed = blocks[..., 4:16]
    low, middle, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=-1)
    minima = np.concatenate([middle & 63, high >> 4 | (middle >> 6) << 4], axis=-1)
    numbers = np.stack([factors[..., :1] * scales, -factors[..., 1:] * minima], axis=-1)
    return numbers.astype(np.float16).reshape(len(blocks), -1, 2)


def _assemble(tile_format: TileFormat, quants: NDArray[np.uint8], numbers: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Tiles from quants (rows, blocks, 32) and the numbers behind them (rows, blocks, 1 or 2)."""
    quants, numbers = _padded(quants, 0, TILE_ROWS), _padded(numbers, 0, TILE_ROWS)
    by_tile = quants.reshape(-1, TILE_ROWS, quants.shape[1], 8, 4)
    groups = by_tile.transpose(0, 2, 3, 1, 4)  # (strips, tiles, 8, 16, 4)
    outer = groups.shape[:2]
    nibbles = (groups[:, :, :4] & 15) | (groups[:, :, 4:] & 15) << 4
    parts = [groups if tile_format == TileFormat.Q8 else nibbles]
    if tile_format in {TileFormat.Q5, TileFormat.Q5_MIN}:
        fifth = (groups >> 4 & 1) << np.arange(8, dtype=np.uint8)[:, None, None]
        parts.append(np.bitwise_or.reduce(fifth, axis=2))
    elif tile_format == TileFormat.Q6:
        upper = (groups >> 4).reshape(*outer, 2, 4, TILE_ROWS, 4)
        parts.append(np.bitwise_or.reduce(upper << (2 * np.arange(4, dtype=np.uint8))[:, None, None], axis=3))
    per_row = numbers.reshape(-1, TILE_ROWS, *numbers.shape[1:]).transpose(0, 2, 3, 1)
    scales = per_row[:, :, :1] if tile_format.has_minima else per_row
    parts.append(np.ascontiguousarray(scales, dtype="<f2").view(np.uint8))
    tiles = np.concatenate([part.reshape(*outer, -1) for part in parts], axis=-1)
    if not tile_format.has_minima:
        return tiles.reshape(-1)
    return np.concatenate([tiles.reshape(len(tiles), -1), _pack_minima(per_row[:, :, 1])], axis=1).reshape(-1)


def _pack_minima(minima: NDArray[np.float16]) -> NDArray[np.uint8]:
    """What lies behind the tiles, (strips, bytes), from minima (strips, tiles, 16)."""
    largest = np.abs(minima).max(axis=1, keepdims=True)
    exact, most = minima.astype(np.float32), largest.astype(np.float32)
    shares = np.divide(exact, most, out=np.zeros_like(exact), where=most > 0)
    steps = _padded(np.rint(shares * np.float32(MINIMUM_STEPS)).astype("<i2"), 1, 2)
    pairs = steps.reshape(len(steps), -1, 2, TILE_ROWS).transpose(0, 1, 3, 2)
    parts = (np.ascontiguousarray(pairs), largest.astype("<f2"))
    return np.concatenate([part.reshape(len(minima), -1).view(np.uint8) for part in parts], axis=1)


def _padded(values: NDArray[Any], axis: int, multiple: int) -> NDArray[Any]:
    """``values`` with zeros behind, so that ``axis`` is a multiple of ``multiple``."""
    widths = [(0, -size % multiple if at == axis else 0) for at, size in enumerate(values.shape)]
    return np.pad(values, widths)
