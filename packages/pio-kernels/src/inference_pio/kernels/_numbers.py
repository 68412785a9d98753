"""Small number formats in NumPy: what is left of a float32 after it was stored in one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32
"""Inputs that share one scale when activations are quantised."""


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even; a NaN stays one. The shape stays."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), quiet, rounded).astype(np.uint16)


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bit patterns. The shape stays."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def quantised_blocks(rows: NDArray[np.floating], block: int = BLOCK) -> NDArray[np.float32]:
    """Rows as int8 blocks show them: ``scale * rint(x / scale)``, ``scale = max |x| / 127`` over each block.

    Args:
        rows: (..., columns); the last block of a row may be shorter than the others.
        block: Columns that share a scale.

    Returns:
        The same shape, float32.
    """
    x = np.asarray(rows, dtype=np.float32)
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // block) * block), dtype=np.float32)
    padded[..., : x.shape[-1]] = x
    blocks = padded.reshape(*x.shape[:-1], -1, block)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    # One division and one product, as the native kernels do it: max |x| always becomes 127.
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    quants = np.rint(blocks * inverse)
    rounded: NDArray[np.float32] = (quants * (largest / np.float32(127))).reshape(padded.shape)[..., : x.shape[-1]]
    return rounded
