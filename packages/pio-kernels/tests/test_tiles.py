"""Tiles written and read in NumPy, against gguf-py's reading of the same blocks and against native packing."""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.interfaces import UnsupportedError
from inference_pio.kernels import TileFormat, pack_reference, unpack
from inference_pio.kernels._numbers import bf16_bits, bf16_values, quantised_activations, quantised_blocks
from inference_pio.kernels._pack import half_split_order, pack
from inference_pio.kernels._tiles import packed_bytes

PAIRS = [
    ("Q4_0", TileFormat.Q4, 0),
    ("Q4_1", TileFormat.Q4_MIN, 0),
    ("Q5_0", TileFormat.Q5, 0),
    ("Q5_1", TileFormat.Q5_MIN, 0),
    ("Q8_0", TileFormat.Q8, 0),
    # Scales of sub-blocks are products, rounded to float16.
    ("Q4_K", TileFormat.Q4_MIN, 2**-10),
    ("Q5_K", TileFormat.Q5_MIN, 2**-10),
    ("Q6_K", TileFormat.Q6, 2**-10),
]
PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def plain_matrix(rng, encoding, rows, columns):
    """Values, and the same as stored bytes."""
    values = rng.normal(size=(rows, columns)).astype(np.float32)
    if encoding == "BF16":
        bits = bf16_bits(values)
        return bf16_values(bits), bits.view(np.uint8).reshape(-1)
    stored = values.astype(PLAIN[encoding])
    return stored.astype(np.float32), stored.view(np.uint8).reshape(-1)


@pytest.mark.parametrize("encoding, tile_format, share", PAIRS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_blocks_keep_their_values(encoding, tile_format, share, rows, make_blocks):
    """Unpacked tiles hold what gguf-py decodes, bit for bit where scales are stored as such and there are no minima."""
    gguf = pytest.importorskip("gguf", reason="the reference decoder of GGML's block formats")
    stored = make_blocks(np.random.default_rng(rows), encoding, rows, 512)
    expected = gguf.dequantize(stored.reshape(rows, -1), gguf.GGMLQuantizationType[encoding])
    values = unpack(tile_format, pack_reference(tile_format, encoding, stored, rows, 512), rows, 512)
    slack = share * np.abs(expected).max()
    if tile_format.has_minima:  # 8192 steps to the largest of a row, and what rounding a float32 sum may add
        slack += (2**-14 + 2**-22) * np.abs(expected).max(axis=1, keepdims=True)
    assert np.all(np.abs(values - expected) <= slack)


@pytest.mark.parametrize("encoding", PLAIN)
@pytest.mark.parametrize("rows, columns", [(1, 1), (16, 32), (17, 33), (50, 100)])
def test_floats_keep_their_bits(encoding, rows, columns):
    """Floating point goes through tiles unchanged, also where rows and columns are no multiples."""
    values, stored = plain_matrix(np.random.default_rng(0), encoding, rows, columns)
    packed = pack_reference(TileFormat[encoding], encoding, stored, rows, columns)
    assert packed.nbytes == packed_bytes(TileFormat[encoding], rows, columns)
    np.testing.assert_array_equal(unpack(TileFormat[encoding], packed, rows, columns), values)


@pytest.mark.parametrize("encoding", PLAIN)
def test_floats_become_int8_within_half_a_step(encoding):
    """Blocks of 32 in int8 are off by half of their scale at most, and by what float16 does to the scale."""
    values, stored = plain_matrix(np.random.default_rng(1), encoding, 20, 96)
    values[3] = 0
    stored = stored.reshape(20, -1)
    stored[3] = 0
    unpacked = unpack(TileFormat.Q8, pack_reference(TileFormat.Q8, encoding, stored.reshape(-1), 20, 96), 20, 96)
    largest = np.abs(values).reshape(20, 3, 32).max(axis=2).repeat(32, axis=1)
    assert (np.abs(unpacked - values) <= largest * (0.5 / 127) * (1 + 2**-9) + 1e-12).all()
    assert not unpacked[3].any()


@pytest.mark.parametrize("encoding, tile_format", [pair[:2] for pair in PAIRS])
@pytest.mark.parametrize("ordered", [False, True])
def test_native_packing_of_blocks_writes_the_same_bytes(encoding, tile_format, ordered, make_blocks):
    """The native packing is the NumPy one, strip by strip and in another order of rows too."""
    rng = np.random.default_rng(2)
    stored = make_blocks(rng, encoding, 48, 256)
    order = rng.permutation(48).astype(np.int32) if ordered else None
    expected = pack_reference(tile_format, encoding, stored, 48, 256, order)
    strips = np.zeros(expected.nbytes, dtype=np.uint8)
    for first, last in ((16, 48), (0, 16)):
        pack(tile_format, encoding, stored, (48, 256), strips, order, (first, last))
    np.testing.assert_array_equal(strips, expected)


@pytest.mark.parametrize("encoding", PLAIN)
@pytest.mark.parametrize("target", ["same", "Q8"])
def test_native_packing_of_floats_gives_the_same_values(encoding, target):
    """Odd sizes too; what lies beyond the matrix is nobody's business."""
    _, stored = plain_matrix(np.random.default_rng(3), encoding, 35, 70)
    tile_format = TileFormat[encoding if target == "same" else target]
    strips = np.zeros(packed_bytes(tile_format, 35, 70), dtype=np.uint8)
    pack(tile_format, encoding, stored, (35, 70), strips)
    expected = unpack(tile_format, pack_reference(tile_format, encoding, stored, 35, 70), 35, 70)
    np.testing.assert_array_equal(unpack(tile_format, strips, 35, 70), expected)


def test_what_cannot_be_packed_is_refused():
    """Wrong pairs and wrong sizes do not reach memory that is not theirs."""
    stored, strips = np.zeros(16 * 18, dtype=np.uint8), np.zeros(288, dtype=np.uint8)
    with pytest.raises(ValueError, match="Q4_0 cannot be packed as Q6"):
        pack_reference(TileFormat.Q6, "Q4_0", stored, 16, 32)
    with pytest.raises(ValueError, match="Q4_0 cannot be packed as F32"):
        pack_reference(TileFormat.F32, "Q4_0", stored, 16, 32)
    with pytest.raises(UnsupportedError, match="stored as Q4_0 cannot be packed as Q5"):
        pack(TileFormat.Q5, "Q4_0", stored, (16, 32), np.zeros(352, dtype=np.uint8))
    with pytest.raises(UnsupportedError, match="stored as IQ9 cannot be packed as Q4"):
        pack(TileFormat.Q4, "IQ9", np.zeros(512, dtype=np.uint8), (16, 32), strips)
    with pytest.raises(ValueError, match=r"287 bytes are no matrix \(16, 32\) in Q4_0"):
        pack(TileFormat.Q4, "Q4_0", stored[1:], (16, 32), strips)
    with pytest.raises(ValueError, match="287 bytes do not hold 16 rows of 32 in Q4"):
        pack(TileFormat.Q4, "Q4_0", stored, (16, 32), strips[1:])
    with pytest.raises(ValueError, match="rows 8 to 16 of 16 do not begin a strip"):
        pack(TileFormat.Q4, "Q4_0", stored, (16, 32), strips, None, (8, 16))
    with pytest.raises(ValueError, match="the order of 16 rows is int64"):
        pack(TileFormat.Q4, "Q4_0", stored, (16, 32), strips, np.arange(16))
    with pytest.raises(ValueError, match="the order of 16 rows names row 16"):
        pack(TileFormat.Q4, "Q4_0", stored, (16, 32), strips, np.arange(1, 17, dtype=np.int32))
    stored.reshape(16, 18)[7, :2] = np.array([np.nan], np.float16).view(np.uint8)
    with pytest.raises(UnsupportedError, match=r"down\.3 \(16, 32\) stored as Q4_0 .* that are not finite"):
        pack(TileFormat.Q4, "Q4_0", stored, (16, 32), strips, name="down.3")


def test_half_split_order_of_heads():
    """Pairs (a, b) of each head come apart: all a, then all b."""
    np.testing.assert_array_equal(half_split_order(12, 2), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11])


def test_bfloat16_rounds_to_nearest_even():
    """As torch does, for ties, infinities and NaN."""
    torch = pytest.importorskip("torch", reason="the oracle of bfloat16")
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    ties = (np.arange(100, dtype=np.uint32) << 15 | 0x3F800000).view(np.float32)
    special = np.array([np.inf, -np.inf, np.nan, 3.4e38, 1e-45, 0.0, -0.0], dtype=np.float32)
    every = np.concatenate([values, ties, special])
    expected = torch.from_numpy(every).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bf16_values(bf16_bits(every)), expected)


@pytest.mark.parametrize("columns", [32, 64, 70, 5])
def test_quantised_blocks_are_off_by_half_a_step(columns):
    """The largest magnitude of a block is kept; a block of zeros stays one."""
    x = np.random.default_rng(0).normal(size=(3, columns)).astype(np.float32)
    x[1] = 0
    rounded = quantised_blocks(x)
    for first in range(0, columns, 32):
        block, kept = x[:, first : first + 32], rounded[:, first : first + 32]
        largest = np.abs(block).max(axis=1)
        np.testing.assert_allclose(np.abs(kept).max(axis=1), largest, rtol=1e-6)
        assert (np.abs(kept - block) <= largest[:, None] / 254 * 1.0001).all()


def test_outliers_of_activations_are_kept_apart():
    """What is 2.5 times as large as the rest of its block stays itself, and the rest has the steps of its own."""
    x = np.random.default_rng(0).uniform(-1, 1, (2, 64)).astype(np.float32)
    x[0, 40], x[1, 3], x[1, 5] = 300.0, 90.0, -90.0
    rounded = quantised_activations(x, outliers=True)
    assert rounded[0, 40] == 300.0
    assert np.abs(rounded[0] - x[0]).max() <= 1 / 254
    assert np.abs(rounded[1, :32] - x[1, :32]).max() > 1 / 254
    np.testing.assert_array_equal(quantised_activations(x, outliers=False), quantised_blocks(x))
