"""Repacking of stored matrices into tiles, compared with gguf-py's reading of the same bytes."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray

gguf = pytest.importorskip("gguf", reason="gguf-py is the oracle of the block formats")

Q4, Q4_MIN, Q5, Q5_MIN, Q6, Q8, Q8_SPLIT, BF16, F16, F32 = range(10)
TILE_BYTES = (288, 288, 352, 352, 448, 544, 544, 1024, 1024, 2048)
ENCODINGS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13,
             "Q6_K": 14, "BF16": 30}  # fmt: skip
TILES = {"Q4_0": Q4, "Q4_1": Q4_MIN, "Q5_0": Q5, "Q5_1": Q5_MIN, "Q8_0": Q8, "Q4_K": Q4_MIN, "Q5_K": Q5_MIN,
         "Q6_K": Q6, "F32": F32, "F16": F16, "BF16": BF16}  # fmt: skip
BLOCKS = tuple(name for name in TILES if name.startswith("Q"))
SCALES_AT = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2),
             "Q6_K": (208,)}  # fmt: skip


class Tiles:
    """What tiles hold by the table in program.h, one number at a time, as (rows, inputs)."""

    def __init__(self, form: int, strips: NDArray[np.uint8], rows: int, columns: int) -> None:
        tiles = -(-columns // 32)
        if form == Q8_SPLIT:
            form, strips = Q8, eight_bit_tiles(strips)
        self.form = form
        strips = strips.reshape(-1, strip_bytes(form, columns))
        self.tiles = strips[:, : tiles * TILE_BYTES[form]].reshape(len(strips), tiles, TILE_BYTES[form])
        self.behind = strips[:, tiles * TILE_BYTES[form] :]
        self.all = np.array([[self._weight(row, i) for i in range(32 * tiles)] for row in range(16 * len(self.tiles))])
        self.matrix = self.all[:rows, :columns]

    def _weight(self, row: int, i: int) -> np.float32:
        tile, r, k = self.tiles[row // 16, i // 32], row % 16, i % 32
        if self.form == BF16:
            return (tile.view(np.uint16)[k // 2 * 32 + 2 * r + k % 2].astype(np.uint32) << 16).view(np.float32)
        if self.form in (F16, F32):
            return np.float32(tile.view(np.float16 if self.form == F16 else np.float32)[k * 16 + r])
        quant, numbers = self._quant(tile, r, k)
        scale = numbers[16 * (k // 16) + r] if self.form == Q6 else numbers[r]
        assert np.isfinite(scale)
        zero = {Q4: 8, Q5: 16, Q6: 32, Q8: 128}.get(self.form, 0)
        return np.float32(scale * np.float32(quant - zero) + self.minimum(row, i // 32))

    def minimum(self, row: int, tile: int) -> np.float32:
        """What is added to the weights of a row in a tile."""
        if self.form not in (Q4_MIN, Q5_MIN):
            return np.float32(0)
        behind, r = self.behind[row // 16], row % 16
        steps = behind[64 * (tile // 2) :].view(np.int16)[2 * r + tile % 2]
        largest = np.float32(behind[-32:].view(np.float16)[r])
        return np.float32(largest / np.float32(8192) * np.float32(steps))

    def _quant(self, tile: NDArray[np.uint8], r: int, k: int) -> tuple[int, NDArray[np.float32]]:
        g, lane = k // 4, 4 * r + k % 4
        if self.form == Q8:
            return int(tile[64 * g + lane]), tile[512:].view(np.float16).astype(np.float32)
        quant = int(tile[64 * (g % 4) + lane]) >> 4 * (g // 4) & 15
        end = 256
        if self.form in (Q5, Q5_MIN):
            quant |= (int(tile[256 + lane]) >> g & 1) << 4
            end = 320
        if self.form == Q6:
            quant |= (int(tile[256 + 64 * (g // 4) + lane]) >> 2 * (g % 4) & 3) << 4
            end = 384
        return quant, tile[end:].view(np.float16).astype(np.float32)


def strip_bytes(form: int, columns: int) -> int:
    """Bytes of a strip: its tiles, and minima behind them."""
    tiles = -(-columns // 32)
    return tiles * TILE_BYTES[form] + (32 + 64 * -(-tiles // 2) if form in (Q4_MIN, Q5_MIN) else 0)


def eight_bit_tiles(split: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tiles of Q8 that those of Q8_SPLIT stand for, one byte at a time."""
    count = len(split) // 544
    tiles = np.empty((count, 544), np.uint8)
    for number in range(count):
        upper, low = split[416 * number :][:416], split[416 * count + 128 * number :][:128]
        for g in range(8):
            for lane in range(64):
                nibble = upper[64 * (g % 4) + lane] >> 4 * (g // 4) & 15
                at, shift = 64 * (g // 4) + lane, 2 * (g % 4)
                tiles[number, 64 * g + lane] = nibble << 4 | (upper[256 + at] >> shift & 3) << 2 | low[at] >> shift & 3
        tiles[number, 512:] = upper[384:]
    return tiles.reshape(-1)


def pack(
    library: ctypes.CDLL, form: int, encoding: int, stored: NDArray[np.uint8], rows: int, columns: int,
    row_order: NDArray[np.int32] | None = None,
) -> tuple[int, NDArray[np.uint8]]:  # fmt: skip
    """What pio_pack answers, and strips that held garbage before; the strips in two calls, as threads do it."""
    strips = -(-rows // 16)
    out = np.full(strips * strip_bytes(form, columns), 0xA5, np.uint8)
    order = None if row_order is None else row_order.ctypes.data
    codes = {
        library.pio_pack(
            form, encoding, ctypes.c_void_p(stored.ctypes.data), rows, columns, ctypes.c_void_p(order),
            ctypes.c_void_p(out.ctypes.data), first, last,
        )
        for first, last in ((0, strips // 2), (strips // 2, strips))
    }  # fmt: skip
    return min(codes), out


def random_blocks(name: str, rows: int, columns: int, seed: int, largest: float = 0.01) -> NDArray[np.uint8]:
    """(rows, bytes) of random blocks whose scales are up to ``largest`` and down to the least subnormal."""
    rng = np.random.default_rng(seed)
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    for at in SCALES_AT[name]:
        scales = (rng.uniform(-1, 1, blocks.shape[:2]) * largest).astype(np.float16)
        scales[rng.random(scales.shape) < 0.1] = 0
        scales[rng.random(scales.shape) < 0.1] = 2.0**-24
        scales[rng.random(scales.shape) < 0.1] = -(2.0**-15)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def stored_numbers(name: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``values`` in a plain encoding, as bytes."""
    if name == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype({"F32": np.float32, "F16": np.float16}[name]).view(np.uint8)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("rows", [1, 16, 21, 48])
def test_blocks_keep_their_values(library: ctypes.CDLL, name: str, rows: int) -> None:
    """Tiles hold what gguf-py reads: exactly where scales move over, else within the float16 rounding of a product;
    minima to half a step, of which there are 8192 to the largest of a row.
    """
    stored = random_blocks(name, rows, 512, rows)
    code, out = pack(library, TILES[name], ENCODINGS[name], stored, rows, 512)
    assert code == 0
    tiles = Tiles(TILES[name], out, rows, 512)
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[name])
    minima = np.abs(_minima_of(name, stored, rows))
    slack = np.zeros(expected.shape)
    if name.endswith("_K"):
        # Scales and minima are each off by 2^-11 of themselves at most, half an ulp, and values by as many quants.
        slack = 2.0**-11 * (np.abs(expected) + 2 * minima) + 1e-12
    if tiles.behind.size:
        slack += minima.max(axis=1, keepdims=True) * 2.0**-14 * (1 + 2.0**-9) + 2.0**-23 * np.abs(expected)
    assert np.all(np.abs(tiles.matrix - expected) <= slack)
    np.testing.assert_array_equal(tiles.all[rows:], 0)


@pytest.mark.parametrize("name", ["Q8_0", "F32", "F16", "BF16"])
@pytest.mark.parametrize("rows", [16, 21, 48])
def test_eight_bits_are_taken_apart(library: ctypes.CDLL, name: str, rows: int) -> None:
    """Split tiles stand for the same bytes as whole ones, whatever they are made from and in however many calls."""
    if name == "Q8_0":
        stored = random_blocks(name, rows, 96, rows)
    else:
        values = np.random.default_rng(rows).standard_normal((rows, 96)).astype(np.float32)
        stored = stored_numbers(name, values)
    code, whole = pack(library, Q8, ENCODINGS[name], stored, rows, 96)
    assert code == 0
    code, split = pack(library, Q8_SPLIT, ENCODINGS[name], stored, rows, 96)
    assert code == 0
    np.testing.assert_array_equal(eight_bit_tiles(split), whole)


def _minima_of(name: str, stored: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    """What each value has added: gguf-py's reading with every quant at zero."""
    head = {"Q4_1": 4, "Q5_1": 4, "Q4_K": 16, "Q5_K": 16}.get(name)
    if head is None:
        return np.zeros((rows, 512), np.float32)
    blocks = stored.reshape(rows, 512 // gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0], -1).copy()
    blocks[..., head:] = 0
    return gguf.dequantize(blocks.reshape(rows, -1), gguf.GGMLQuantizationType[name])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_come_in_the_order_asked_for(library: ctypes.CDLL, name: str) -> None:
    """Output row i is stored row row_order[i], some of them left out."""
    stored = random_blocks(name, 40, 256, 3)
    order = np.random.default_rng(4).permutation(40)[:35].astype(np.int32)
    _, straight = pack(library, TILES[name], ENCODINGS[name], np.ascontiguousarray(stored[order]), 35, 256)
    code, ordered = pack(library, TILES[name], ENCODINGS[name], stored, 35, 256, order)
    assert code == 0
    np.testing.assert_array_equal(ordered, straight)


@pytest.mark.parametrize("form", [BF16, F16, F32], ids=("bf16", "f16", "f32"))
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (19, 45), (1, 1), (33, 64)])
def test_plain_numbers_are_rounded_to_the_tile(
    library: ctypes.CDLL, name: str, form: int, rows: int, columns: int
) -> None:
    """Numbers are kept, or rounded to nearest even, subnormals, overflow and padding included."""
    rng = np.random.default_rng(rows)
    values = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-9, 6, (rows, columns))).astype(np.float32)
    if name == "F16":
        with np.errstate(over="ignore"):
            values = values.astype(np.float16).astype(np.float32)
    if name == "BF16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    code, out = pack(library, form, ENCODINGS[name], stored_numbers(name, values), rows, columns)
    assert code == 0
    tiles = Tiles(form, out, rows, columns)
    expected = values
    if form == F16:
        with np.errstate(over="ignore"):
            expected = values.astype(np.float16).astype(np.float32)
    if form == BF16:
        bits = values.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        expected = rounded.astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(tiles.matrix, expected)
    assert not tiles.all[rows:].any()
    assert not tiles.all[:, columns:].any()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (19, 45), (32, 64)])
@pytest.mark.parametrize("magnitude", [1e-6, 0.03, 100.0])
def test_plain_numbers_become_eight_bits(
    library: ctypes.CDLL, name: str, rows: int, columns: int, magnitude: float
) -> None:
    """Each value is within half a step of a scale, which is the least float16 that holds max |x| / 127."""
    rng = np.random.default_rng(9)
    values = (rng.standard_normal((rows, columns)) * magnitude).astype(np.float32)
    values[-1] = 0
    stored = stored_numbers(name, values)
    exact = values
    if name == "F16":
        exact = values.astype(np.float16).astype(np.float32)
    if name == "BF16":
        exact = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    code, out = pack(library, Q8, ENCODINGS[name], stored, rows, columns)
    assert code == 0
    tiles = Tiles(Q8, out, rows, columns)
    padded = np.zeros(tiles.all[:rows].shape, np.float32)
    padded[:, :columns] = exact
    steps = np.abs(padded.reshape(rows, -1, 32)).max(2) / 127
    steps = np.repeat(np.maximum(steps * (1 + 2.0**-10), steps + 2.0**-24), 32, axis=1)
    assert np.all(np.abs(tiles.all[:rows] - padded) <= steps / 2 * (1 + 1e-5))
    assert not tiles.all[rows:].any()
    assert not tiles.matrix[-1].any()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_scales_that_are_no_numbers_are_refused(library: ctypes.CDLL, name: str, value: float) -> None:
    """A damaged file's scale or minimum would be multiplied into a number that looks like any other."""
    for at in SCALES_AT[name]:
        stored = random_blocks(name, 16, 256, 1)
        stored[5, at : at + 2] = np.array([value], np.float16).view(np.uint8)
        assert pack(library, TILES[name], ENCODINGS[name], stored, 16, 256)[0] == -2


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_products_beyond_float16_are_refused(library: ctypes.CDLL, name: str) -> None:
    """A scale that a tile cannot hold is an error, not an infinity."""
    stored = random_blocks(name, 16, 256, 1)
    for at in SCALES_AT[name]:
        stored[5, at : at + 2] = np.array([6e4], np.float16).view(np.uint8)
    assert pack(library, TILES[name], ENCODINGS[name], stored, 16, 256)[0] == -2


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e8])
def test_numbers_beyond_eight_bits_are_refused(library: ctypes.CDLL, value: float) -> None:
    """So is a number whose block has no scale in float16."""
    values = np.ones((16, 32), np.float32)
    values[3, 3] = value
    assert pack(library, Q8, 0, values.view(np.uint8), 16, 32)[0] == -2


def test_pairs_without_a_way_are_refused(library: ctypes.CDLL) -> None:
    """An encoding that a tile does not take, an unknown one, or a part of a block: nothing is written."""
    stored = np.zeros(1 << 14, np.uint8)
    cases = [(Q8, ENCODINGS["Q4_0"], 32), (Q4, 0, 32), (10, 0, 32), (Q4, 99, 32), (Q4, 2, 33), (Q6, 14, 128)]
    for form, encoding, columns in cases:
        out = np.full(1 << 14, 7, np.uint8)
        code = library.pio_pack(
            form,
            encoding,
            ctypes.c_void_p(stored.ctypes.data),
            16,
            columns,
            None,
            ctypes.c_void_p(out.ctypes.data),
            0,
            1,
        )
        assert code == -1, (form, encoding, columns)
        assert (out == 7).all()


def test_strip_bytes_are_those_of_the_table(library: ctypes.CDLL) -> None:
    """Sizes per format and number of inputs, -1 for what is none."""
    library.pio_strip_bytes.restype = ctypes.c_int64
    for columns in (1, 32, 33, 64, 576):
        expected = [strip_bytes(form, columns) for form in range(10)]
        assert [library.pio_strip_bytes(form, columns) for form in range(10)] == expected
    assert library.pio_strip_bytes(10, 32) == -1
    assert library.pio_strip_bytes(0, -1) == -1
