"""Stored bytes to float32: plain formats and ggml's block formats, a chunk at a time.

Each block format is decoded with the operations of the reference, in its order, so the result is equal bit for bit.
In ``_decode_*`` the blocks are uint8 (n, block bytes) and ``out`` is float32 (n, block elements). Layouts: the block
structures of ggml-common.h and the ``dequantize_row_*`` functions of ggml-quants.c in llama.cpp.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import UnsupportedError
from inference_pio.weights._encodings import ENCODINGS, block_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]
    Words = NDArray[np.uint64]

# Temporaries are a few times this many bytes: small beside the result, large beside the cost of a NumPy call.
_CHUNK_ELEMENTS = 1 << 18

# Patterns over the eight bytes of a word; NumPy scalars, because NumPy 1 turns uint64 and a Python int into float64.
_LOW_BITS = np.uint64(0x0101010101010101)
_LOW_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_HIGH_PAIRS = np.uint64(0x3030303030303030)
_FOUR = np.uint64(4)


def dequantize(encoding: str, packed: NDArray[np.uint8], numel: int) -> NDArray[np.float32]:
    """Decode ``packed`` to a new float32 array.

    Args:
        encoding: Name of the storage format, such as ``"Q4_K"``.
        packed: uint8, C-contiguous, any shape: whole blocks.
        numel: Elements in ``packed``.

    Returns:
        float32 (numel,).

    Raises:
        ValueError: Unknown encoding, or ``packed`` does not hold ``numel`` elements.
        UnsupportedError: An encoding that cannot be decoded to float32.
    """
    elements, nbytes = block_layout(encoding)
    decode = _decoder(encoding)
    if packed.dtype != np.uint8:
        msg = f"packed must be uint8, got {packed.dtype}"
        raise ValueError(msg)
    if numel < 0 or numel % elements or packed.size != numel // elements * nbytes:
        msg = f"{packed.size} bytes do not hold {numel} elements of {encoding} ({nbytes} bytes per {elements})"
        raise ValueError(msg)
    out = np.empty(numel, np.float32)
    blocks = packed.reshape(-1, nbytes)
    rows = out.reshape(-1, elements)
    step = _CHUNK_ELEMENTS // elements
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN scales give what they give
        for start in range(0, len(blocks), step):
            decode(blocks[start : start + step], rows[start : start + step])
    return out


def decodable_encodings() -> tuple[str, ...]:
    """The encodings that ``dequantize`` takes."""
    return tuple(_DECODERS)


def _decoder(encoding: str) -> Callable[[Bytes, Floats], None]:
    try:
        return _DECODERS[encoding]
    except KeyError:
        supported = f"decoded are {', '.join(_DECODERS)}"
        if ENCODINGS[encoding].dtype is None:
            hint = f"{supported}; use a file that is quantised to one of these"
        else:
            hint = f"{supported}; array() gives the elements as they are"
        raise UnsupportedError(f"{encoding} cannot be decoded to float32", hint=hint) from None


def _decode_f64(blocks: Bytes, out: Floats) -> None:
    np.copyto(out, blocks.view("<f8"), casting="same_kind")


def _decode_f32(blocks: Bytes, out: Floats) -> None:
    np.copyto(out, blocks.view("<f4"))


def _decode_f16(blocks: Bytes, out: Floats) -> None:
    np.copyto(out, blocks.view("<f2"))


def _decode_bf16(blocks: Bytes, out: Floats) -> None:
    bits = out.view(np.uint32)
    np.copyto(bits, blocks.view("<u2"))
    np.left_shift(bits, 16, out=bits)


def _decode_f8_e4m3(blocks: Bytes, out: Floats) -> None:
    np.take(_f8_table(4), blocks, out=out, mode="clip")


def _decode_f8_e5m2(blocks: Bytes, out: Floats) -> None:
    np.take(_f8_table(5), blocks, out=out, mode="clip")


@cache
def _f8_table(exponent_bits: int) -> Floats:
    """Values of all 256 bit patterns, float32 (256,) (Micikevicius et al. 2022, arXiv:2209.05433, table 1).

    E5M2 has IEEE infinities and NaNs; E4M3 has no infinity and a single NaN, all ones.
    """
    mantissa_bits = 7 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    pattern = np.arange(128)
    exponent = pattern >> mantissa_bits
    fraction = (pattern & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    positive = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if exponent_bits == 5:
        positive[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    else:
        positive[127] = np.nan
    table = np.concatenate([positive, -positive]).astype(np.float32)
    table.flags.writeable = False
    return table


def _half(blocks: Bytes, start: int, count: int = 1) -> Floats:
    """``count`` float16 from byte ``start`` of each block, as float32 (n, count)."""
    return blocks[:, start : start + 2 * count].view("<f2").astype(np.float32)


def _words(packed: Bytes) -> Words:
    """(n, ..., width) bytes, copied together, as eight to a word: bit operations then cost an eighth."""
    return np.array(packed, order="C").view(np.uint64)


def _nibbles(packed: Bytes) -> Words:
    """(n, ..., width) bytes to (n, ..., 2, width / 8) words of their low, then their high four bits."""
    words = _words(packed)
    out = np.empty((*words.shape[:-1], 2, words.shape[-1]), np.uint64)
    np.bitwise_and(words, _LOW_NIBBLES, out=out[..., 0, :])
    np.right_shift(words, _FOUR, out=words)
    np.bitwise_and(words, _LOW_NIBBLES, out=out[..., 1, :])
    return out


def _add_fifth_bits(quants: Words, packed: Bytes) -> None:
    """Set bit 4 of the 32 quants of each block from the 32 bits in its four bytes ``packed``."""
    bits = np.unpackbits(packed, axis=1, bitorder="little").view(np.uint64)
    np.left_shift(bits, _FOUR, out=bits)
    rows = quants.reshape(-1, 4)
    np.bitwise_or(rows, bits, out=rows)


def _scale_32(quants: NDArray[np.int8] | Bytes, scale: Floats, out: Floats) -> None:
    np.copyto(out, quants)
    np.multiply(out, scale, out=out)


def _decode_q4_0(blocks: Bytes, out: Floats) -> None:
    quants = _nibbles(blocks[:, 2:]).view(np.int8).reshape(-1, 32)
    np.subtract(quants, 8, out=quants)
    _scale_32(quants, _half(blocks, 0), out)


def _decode_q4_1(blocks: Bytes, out: Floats) -> None:
    scale_min = _half(blocks, 0, 2)
    _scale_32(_nibbles(blocks[:, 4:]).view(np.uint8).reshape(-1, 32), scale_min[:, :1], out)
    np.add(out, scale_min[:, 1:], out=out)


def _decode_q5_0(blocks: Bytes, out: Floats) -> None:
    quants = _nibbles(blocks[:, 6:])
    _add_fifth_bits(quants, blocks[:, 2:6])
    signed = quants.view(np.int8).reshape(-1, 32)
    np.subtract(signed, 16, out=signed)
    _scale_32(signed, _half(blocks, 0), out)


def _decode_q5_1(blocks: Bytes, out: Floats) -> None:
    scale_min = _half(blocks, 0, 2)
    quants = _nibbles(blocks[:, 8:])
    _add_fifth_bits(quants, blocks[:, 4:8])
    _scale_32(quants.view(np.uint8).reshape(-1, 32), scale_min[:, :1], out)
    np.add(out, scale_min[:, 1:], out=out)


def _decode_q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 sub-blocks of Q4_K and Q5_K, each float32 (n, 8, 1).

    Six bits each, in 12 bytes: bytes 0-3 hold scales 0-3 and, in their top two bits, the high bits of scales 4-7;
    bytes 4-7 the minima likewise; bytes 8-11 the low four bits of scales (low nibble) and minima (high nibble) 4-7.
    """
    scale, minimum, low = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([scale & 0x3F, (low & 0x0F) | ((scale >> 2) & 0x30)], axis=1)
    minima = np.concatenate([minimum & 0x3F, (low >> 4) | ((minimum >> 2) & 0x30)], axis=1)
    scale_min = _half(blocks, 0, 2)
    return (scale_min[:, :1] * scales)[:, :, None], (scale_min[:, 1:] * minima)[:, :, None]


def _scale_k(quants: Words, scales: Floats, minima: Floats, out: Floats) -> None:
    groups = out.reshape(-1, 8, 32)
    np.copyto(groups, quants.view(np.uint8).reshape(-1, 8, 32))
    np.multiply(groups, scales, out=groups)
    np.subtract(groups, minima, out=groups)


def _decode_q4_k(blocks: Bytes, out: Floats) -> None:
    _scale_k(_nibbles(blocks[:, 16:].reshape(-1, 4, 32)), *_k_scales(blocks), out)


def _decode_q5_k(blocks: Bytes, out: Floats) -> None:
    quants = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 4)
    high = _words(blocks[:, 16:48])
    bits = np.empty_like(high)
    for group in range(8):  # bit `group` of the 32 bytes is the fifth bit of sub-block `group`
        np.right_shift(high, np.uint64(group), out=bits)
        np.bitwise_and(bits, _LOW_BITS, out=bits)
        np.left_shift(bits, _FOUR, out=bits)
        np.bitwise_or(quants[:, group], bits, out=quants[:, group])
    _scale_k(quants, *_k_scales(blocks), out)


def _decode_q6_k(blocks: Bytes, out: Floats) -> None:
    # (n, half, low or high nibble, 64), the 64 being two groups of 32; the groups of a half share their high bytes.
    quants = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 4)
    high = _words(blocks[:, 128:192].reshape(-1, 2, 32))
    bits = np.empty_like(high)
    for group, (shift, by) in enumerate(
        ((np.left_shift, 4), (np.left_shift, 2), (np.right_shift, 0), (np.right_shift, 2))
    ):
        shift(high, np.uint64(by), out=bits)  # bits 2 * group and the next, moved to bits 4 and 5
        np.bitwise_and(bits, _HIGH_PAIRS, out=bits)
        np.bitwise_or(quants[:, :, group], bits, out=quants[:, :, group])
    signed = quants.view(np.int8).reshape(-1, 16, 16)
    np.subtract(signed, 32, out=signed)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    groups = out.reshape(-1, 16, 16)
    np.copyto(groups, signed)
    np.multiply(groups, scales[:, :, None], out=groups)


_DECODERS: Mapping[str, Callable[[Bytes, Floats], None]] = {
    "F64": _decode_f64,
    "F32": _decode_f32,
    "F16": _decode_f16,
    "BF16": _decode_bf16,
    "F8_E4M3": _decode_f8_e4m3,
    "F8_E5M2": _decode_f8_e5m2,
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
    "Q5_0": _decode_q5_0,
    "Q5_1": _decode_q5_1,
    "Q8_0": _decode_q8_0,
    "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k,
    "Q6_K": _decode_q6_k,
}
