"""Decoding to float32, held bit for bit to the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from inference_pio.interfaces import UnsupportedError
from inference_pio.weights import block_layout, decodable_encodings, dequantize
from inference_pio.weights._encodings import GGML_TYPES

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def assert_same_bits(actual, expected):
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.uint32), expected.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("encoding", BLOCKS)
@pytest.mark.parametrize("count", [1, 2, 3, 17, 1000])
def test_blocks_decode_bit_for_bit(encoding, count, random_blocks):
    """Random blocks decode exactly as the reference implementation decodes them."""
    blocks = random_blocks(encoding, count, seed=count)
    elements, nbytes = block_layout(encoding)
    expected = gguf.dequantize(blocks.reshape(1, -1), gguf.GGMLQuantizationType[encoding]).reshape(-1)
    assert blocks.shape == (count, nbytes)
    assert_same_bits(dequantize(encoding, blocks, count * elements), expected)


@pytest.mark.parametrize("encoding", decodable_encodings())
@pytest.mark.parametrize("count", [1, 5])
def test_the_stored_bytes_are_left_alone(encoding, count):
    """Read-only, unaligned bytes decode, as those of a mapping are."""
    elements, nbytes = block_layout(encoding)
    stored = np.frombuffer(b"x" + bytes(range(256)) * 5, np.uint8)[1 : 1 + count * nbytes]
    before = stored.copy()
    decoded = dequantize(encoding, stored, count * elements)
    np.testing.assert_array_equal(stored, before)
    np.testing.assert_array_equal(decoded, dequantize(encoding, before, count * elements))


@pytest.mark.parametrize("encoding", BLOCKS)
def test_more_than_a_chunk_decodes_bit_for_bit(encoding, random_blocks):
    """Borders of the chunks, and a last chunk that is not full, change nothing."""
    elements, _nbytes = block_layout(encoding)
    count = 2 * (1 << 18) // elements + 5
    blocks = random_blocks(encoding, count)
    expected = gguf.dequantize(blocks.reshape(1, -1), gguf.GGMLQuantizationType[encoding]).reshape(-1)
    assert_same_bits(dequantize(encoding, blocks.reshape(-1), count * elements), expected)


@pytest.mark.parametrize("encoding", BLOCKS)
def test_every_byte_value_in_every_place(encoding, random_blocks):
    """Each byte of a block takes all 256 values in turn, scales excepted: no bit is misplaced."""
    elements, nbytes = block_layout(encoding)
    sample = random_blocks(encoding, 1)
    blocks = np.repeat(sample, nbytes * 256, axis=0).reshape(nbytes, 256, nbytes)
    finite = np.frombuffer(np.linspace(-3, 3, 256).astype(np.float16).tobytes(), np.uint8).reshape(256, 2)
    for place in range(nbytes):
        blocks[place, :, place] = np.arange(256)
    halves = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q6_K": (208,)}.get(encoding, (0, 2))
    for half in halves:
        blocks[half, :, half : half + 2] = finite
        blocks[half + 1, :, half : half + 2] = finite[::-1]
    flat = blocks.reshape(-1, nbytes)
    expected = gguf.dequantize(flat, gguf.GGMLQuantizationType[encoding]).reshape(-1)
    assert_same_bits(dequantize(encoding, flat, len(flat) * elements), expected)


@pytest.mark.parametrize("encoding", BLOCKS)
def test_non_finite_scales_are_no_warning(encoding):
    """Infinite and NaN scales decode to what IEEE arithmetic gives, silently, as in the reference."""
    elements, nbytes = block_layout(encoding)
    blocks = np.random.default_rng(1).integers(0, 256, (64, nbytes), dtype=np.uint8)
    for offset in {"Q6_K": (208,)}.get(encoding, (0, 2)):
        if nbytes > offset + 2:
            blocks[:, offset : offset + 2] = (
                np.array([np.inf, -np.inf, np.nan, 65504], np.float16).view(np.uint8).reshape(4, 2)[np.arange(64) % 4]
            )
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[encoding]).reshape(-1)
    np.testing.assert_array_equal(dequantize(encoding, blocks, 64 * elements), expected)


@pytest.mark.parametrize("encoding", decodable_encodings())
def test_nothing_decodes_to_nothing(encoding):
    """No blocks give an empty array."""
    decoded = dequantize(encoding, np.empty(0, np.uint8), 0)
    assert decoded.shape == (0,)
    assert decoded.dtype == np.float32


@pytest.mark.parametrize(("encoding", "dtype"), [("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2")])
def test_plain_floats_decode_as_numpy_converts(encoding, dtype):
    """F64, F32 and F16, in every order of magnitude, infinities and NaN included."""
    values = np.concatenate([np.random.default_rng(0).standard_normal(300_001), [0.0, -0.0, np.inf, -np.inf, np.nan]])
    values = (values * 10.0 ** (np.arange(values.size) % 7 - 4)).astype(dtype)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    assert_same_bits(dequantize(encoding, values.view(np.uint8), values.size), expected)


def test_every_bfloat16():
    """All 65,536 bit patterns decode as the reference does."""
    bits = np.arange(65536, dtype=np.uint16)
    expected = gguf.dequantize(bits.view(np.uint8), gguf.GGMLQuantizationType.BF16)
    assert_same_bits(dequantize("BF16", bits.view(np.uint8), bits.size), expected)


def test_every_float16():
    """All 65,536 bit patterns, subnormals included, decode as the reference does."""
    bits = np.arange(65536, dtype=np.uint16)
    expected = gguf.dequantize(bits.view(np.uint8), gguf.GGMLQuantizationType.F16)
    assert_same_bits(dequantize("F16", bits.view(np.uint8), bits.size), expected)


@pytest.mark.parametrize(("encoding", "name"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")])
def test_every_float8(encoding, name):
    """All 256 bit patterns decode as ml_dtypes, which holds the reference tables, says."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the oracle of the float8 types is not installed")
    bits = np.arange(256, dtype=np.uint8)
    expected = bits.view(getattr(ml_dtypes, name)).astype(np.float32)
    decoded = dequantize(encoding, bits, 256)
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(np.signbit(decoded)[~np.isnan(decoded)], np.signbit(expected)[~np.isnan(expected)])


def test_float8_landmarks():
    """Largest and smallest values of the two kinds (arXiv:2209.05433, table 1)."""
    e4m3 = dequantize("F8_E4M3", np.array([0x7E, 0x01, 0x08, 0x80, 0x7F], np.uint8), 5)
    e5m2 = dequantize("F8_E5M2", np.array([0x7B, 0x01, 0x04, 0x7C, 0xFC], np.uint8), 5)
    np.testing.assert_array_equal(e4m3, np.array([448, 2.0**-9, 2.0**-6, -0.0, np.nan], np.float32))
    np.testing.assert_array_equal(e5m2, np.array([57344, 2.0**-16, 2.0**-14, np.inf, -np.inf], np.float32))


def test_layouts_are_those_of_ggml():
    """Number, name, elements and bytes of every type are what the gguf package says."""
    theirs = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    ours = {number: (name, *block_layout(name)) for number, name in GGML_TYPES.items()}
    assert ours == theirs


def test_unknown_encoding_is_named():
    """A name that is no encoding is a mistake of the caller."""
    with pytest.raises(ValueError, match="unknown encoding 'Q9_Z'; known are F64, F32"):
        block_layout("Q9_Z")
    with pytest.raises(ValueError, match="unknown encoding 'Q9_Z'"):
        dequantize("Q9_Z", np.empty(0, np.uint8), 0)


def test_undecodable_encoding_names_the_supported():
    """A format known by size alone, and integers, say what to do instead."""
    with pytest.raises(UnsupportedError, match=r"IQ4_XS cannot be decoded.*Q4_K, Q5_K, Q6_K; use a file"):
        dequantize("IQ4_XS", np.empty(136, np.uint8), 256)
    with pytest.raises(UnsupportedError, match=r"I32 cannot be decoded.*array\(\) gives"):
        dequantize("I32", np.empty(4, np.uint8), 1)


@pytest.mark.parametrize(
    ("packed", "numel", "message"),
    [
        (np.empty(18, np.uint8), 33, "18 bytes do not hold 33 elements of Q4_0"),
        (np.empty(19, np.uint8), 32, "19 bytes do not hold 32 elements"),
        (np.empty(18, np.uint8), 64, "18 bytes do not hold 64 elements"),
        (np.empty(18, np.uint8), -32, "18 bytes do not hold -32 elements"),
        (np.empty(18, np.int8), 32, "packed must be uint8, got int8"),
    ],
)
def test_wrong_sizes_are_refused(packed, numel, message):
    """Bytes and elements must agree."""
    with pytest.raises(ValueError, match=message):
        dequantize("Q4_0", packed, numel)
