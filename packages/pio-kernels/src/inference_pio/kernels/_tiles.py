"""Tiles of 16 output rows x 32 inputs, in which matrices lie in memory: their formats, and what they hold.

``native/program.h`` draws them. Here they are read with NumPy, for tests and for the interpreter.
"""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from inference_pio.kernels._numbers import bf16_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

TILE_ROWS = 16
TILE_INPUTS = 32
MINIMUM_STEPS = 8192
"""Steps of the largest minimum of a row, of which minima are whole numbers."""

LAYOUT_VERSION = 3
"""Raised when the meaning of packed bytes changes: what was kept on disk before is packed again."""


class TileFormat(IntEnum):
    """How the numbers of a tile are stored; the values are those of ``TileFormat`` in ``program.h``."""

    Q4 = 0
    Q4_MIN = 1
    Q5 = 2
    Q5_MIN = 3
    Q6 = 4
    Q8 = 5
    Q8_SPLIT = 6
    BF16 = 7
    F16 = 8
    F32 = 9

    @property
    def has_minima(self) -> bool:
        """Whether weights are ``d q + m``."""
        return self in {TileFormat.Q4_MIN, TileFormat.Q5_MIN}

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile; with the lower bits of ``Q8_SPLIT``, which lie elsewhere, without minima."""
        return _TILE_BYTES[self]

    def strip_bytes(self, columns: int) -> int:
        """Bytes of a strip over so many inputs, with all that belongs to it."""
        tiles = -(-columns // TILE_INPUTS)
        return tiles * self.tile_bytes + self.minima_bytes(tiles)

    def minima_bytes(self, tiles: int) -> int:
        """Bytes behind the tiles of a strip: minima of two tiles at a time, then the largest of each row."""
        return 2 * TILE_ROWS + -(-tiles // 2) * 4 * TILE_ROWS if self.has_minima else 0

    @property
    def label(self) -> str:
        """Name for people, such as ``"Q4Min"``."""
        return self.name.replace("_MIN", "Min").replace("_SPLIT", "")


_TILE_BYTES: Mapping[TileFormat, int] = MappingProxyType(
    {
        TileFormat.Q4: 256 + 32,
        TileFormat.Q4_MIN: 256 + 32,
        TileFormat.Q5: 256 + 64 + 32,
        TileFormat.Q5_MIN: 256 + 64 + 32,
        TileFormat.Q6: 256 + 128 + 64,
        TileFormat.Q8: 512 + 32,
        TileFormat.Q8_SPLIT: 256 + 128 + 32 + 128,
        TileFormat.BF16: 1024,
        TileFormat.F16: 1024,
        TileFormat.F32: 2048,
    }
)
# What a quantised format subtracts before it multiplies; those with minima add one afterwards instead.
_ZERO: Mapping[TileFormat, int] = MappingProxyType(
    {TileFormat.Q4: 8, TileFormat.Q5: 16, TileFormat.Q6: 32, TileFormat.Q8: 128}
)


def packed_bytes(tile_format: TileFormat, rows: int, columns: int) -> int:
    """Bytes of a packed matrix."""
    return -(-rows // TILE_ROWS) * tile_format.strip_bytes(columns)


def unpack(tile_format: TileFormat, strips: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
    """The matrix (rows, columns) that ``strips``, flat, hold."""
    if tile_format == TileFormat.Q8_SPLIT:
        return unpack(TileFormat.Q8, _joined(strips, columns), rows, columns)
    shape = (-(-rows // TILE_ROWS), -(-columns // TILE_INPUTS), tile_format.tile_bytes)
    by_strip = np.ascontiguousarray(strips).reshape(shape[0], -1)
    tiles, minima = np.split(by_strip, [shape[1] * tile_format.tile_bytes], axis=1)
    tiles = np.ascontiguousarray(tiles).reshape(shape)
    values = _float_tiles(tile_format, tiles) if tile_format >= TileFormat.BF16 else _quantised(tile_format, tiles)
    if tile_format.has_minima:
        values += _minima(minima, shape[1])
    # (strips, tiles, 16, 32) to rows and columns
    matrix = values.transpose(0, 2, 1, 3).reshape(shape[0] * TILE_ROWS, shape[1] * TILE_INPUTS)
    return np.ascontiguousarray(matrix[:rows, :columns])


# What NumPy makes of operations with Python's integers is uint8 too, which its stubs do not know: hence Any below.


def split(strips: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Strips of Q8 as such of Q8_SPLIT, both flat."""
    tiles = strips.reshape(-1, -(-columns // TILE_INPUTS), TileFormat.Q8.tile_bytes)
    quants = tiles[..., :512].reshape(*tiles.shape[:2], 8, 64)
    upper = quants[:, :, :4] >> 4 | quants[:, :, 4:] & 0xF0
    first = np.concatenate([upper.reshape(*tiles.shape[:2], 256), _pairs(quants >> 2 & 3), tiles[..., 512:]], axis=-1)
    return np.concatenate([first.reshape(-1), _pairs(quants & 3).reshape(-1)])


def _pairs(bits: NDArray[Any]) -> NDArray[np.uint8]:
    """Two bits of each quant (strips, tiles, 8, 64), those of four groups in a byte: (strips, tiles, 128)."""
    places = (2 * np.arange(4, dtype=np.uint8))[:, None]
    halves = bits.reshape(*bits.shape[:2], 2, 4, 64) << places
    pairs: NDArray[np.uint8] = np.bitwise_or.reduce(halves, axis=3)
    return pairs.reshape(*bits.shape[:2], 128)


def _joined(strips: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Strips of Q8_SPLIT as such of Q8, both flat."""
    tiles = -(-columns // TILE_INPUTS)
    upper_bytes = strips.size // TileFormat.Q8_SPLIT.tile_bytes * 416
    first, low = strips[:upper_bytes].reshape(-1, tiles, 416), strips[upper_bytes:].reshape(-1, tiles, 128)
    nibbles = first[..., :256].reshape(*first.shape[:2], 4, 64)
    upper = np.concatenate([nibbles << 4, nibbles & 0xF0], axis=2)
    quants = upper | _groups(first[..., 256:384]) << 2 | _groups(low)
    return np.concatenate([quants.reshape(*first.shape[:2], 512), first[..., 384:]], axis=-1).reshape(-1)


def _groups(pairs: NDArray[np.uint8]) -> NDArray[Any]:
    """What :func:`_pairs` put together: (strips, tiles, 8, 64)."""
    places = (2 * np.arange(4, dtype=np.uint8))[:, None]
    halves = pairs.reshape(*pairs.shape[:2], 2, 1, 64) >> places & 3
    return halves.reshape(*pairs.shape[:2], 8, 64)


def _float_tiles(tile_format: TileFormat, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    outer = tiles.shape[:2]
    if tile_format == TileFormat.BF16:  # [p, r, c] is input 2 p + c
        pairs = bf16_values(tiles.view("<u2")).reshape(*outer, 16, TILE_ROWS, 2)
        return pairs.transpose(0, 1, 3, 2, 4).reshape(*outer, TILE_ROWS, TILE_INPUTS)
    numbers = tiles.view("<f2" if tile_format == TileFormat.F16 else "<f4").astype(np.float32)
    return numbers.reshape(*outer, TILE_INPUTS, TILE_ROWS).transpose(0, 1, 3, 2)  # [k, r]


def _quantised(tile_format: TileFormat, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    quants, used = _quants(tile_format, tiles)
    numbers = tiles[..., used:].view("<f2").astype(np.float32)  # per row, one array after the other
    scales, second = numbers[..., :TILE_ROWS, None], numbers[..., TILE_ROWS:, None]
    if tile_format.has_minima:
        return scales * quants
    if tile_format == TileFormat.Q6:  # scales of inputs 0..15, then of inputs 16..31
        scales = np.repeat(np.concatenate([scales, second], axis=-1), TILE_INPUTS // 2, axis=-1)
    return scales * (quants - np.float32(_ZERO[tile_format]))


def _minima(stored: NDArray[np.uint8], tiles: int) -> NDArray[np.float32]:
    """What lies behind the tiles of each strip, (strips, bytes), as (strips, tiles, 16, 1)."""
    pairs, largest = np.split(stored, [-2 * TILE_ROWS], axis=1)
    steps = np.ascontiguousarray(largest).view("<f2").astype(np.float32) / np.float32(MINIMUM_STEPS)
    numbers = np.ascontiguousarray(pairs).view("<i2").reshape(len(stored), -1, TILE_ROWS, 2)
    by_tile = numbers.transpose(0, 1, 3, 2).reshape(len(stored), -1, TILE_ROWS)[:, :tiles]
    minima: NDArray[np.float32] = (by_tile * steps[:, None])[..., None].astype(np.float32)
    return minima


def _quants(tile_format: TileFormat, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], int]:
    """Quants (strips, tiles, 16, 32) as they are stored, and the bytes they take."""
    outer = tiles.shape[:2]
    if tile_format == TileFormat.Q8:
        return _rows_of(tiles[..., :512].reshape(*outer, 8, TILE_ROWS, 4)), 512
    nibbles = tiles[..., :256].reshape(*outer, 4, TILE_ROWS, 4)  # [g, r, c]
    groups = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)  # [g, r, c], g < 8
    if tile_format in {TileFormat.Q5, TileFormat.Q5_MIN}:
        bits = tiles[..., 256:320].reshape(*outer, 1, TILE_ROWS, 4)
        fifth = bits >> np.arange(8, dtype=np.uint8)[:, None, None] & 1
        return _rows_of(groups | fifth << 4), 320
    if tile_format == TileFormat.Q6:
        pairs = tiles[..., 256:384].reshape(*outer, 2, 1, TILE_ROWS, 4)
        upper = pairs >> (2 * np.arange(4, dtype=np.uint8))[:, None, None] & 3
        return _rows_of(groups | upper.reshape(groups.shape) << 4), 384
    return _rows_of(groups), 256


def _rows_of(groups: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(..., 8, 16, 4), indexed by group of four inputs, row and place, to (..., 16, 32)."""
    rows = np.moveaxis(groups, -3, -2)
    return rows.reshape(*rows.shape[:-2], TILE_INPUTS).astype(np.float32)
