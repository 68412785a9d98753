"""Small number formats in NumPy: what is left of a float32 after it was stored in one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32
"""Inputs that share one scale when activations are quantised."""

OUTLIER_RATIO = 2.5
"""An input more than so many times as large as any other of its block is kept apart."""


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even; a NaN stays one. The shape stays."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), quiet, rounded).astype(np.uint16)


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bit patterns. The shape stays."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def quantised_activations(rows: NDArray[np.floating], *, outliers: bool) -> NDArray[np.float32]:
    """Rows as products with quantised weights read them: blocks of 32 as int8.

    Args:
        rows: (..., columns).
        outliers: Whether the outlier of a block is kept as it is, as that of a norm's output.

    Returns:
        The same shape, float32.
    """
    x = np.asarray(rows, dtype=np.float32)
    if not outliers:
        return quantised_blocks(x)
    padding = -x.shape[-1] % BLOCK
    blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]).reshape(*x.shape[:-1], -1, BLOCK)
    magnitudes = np.abs(blocks)
    ordered = np.sort(magnitudes, axis=-1)
    largest, second = ordered[..., -1:], ordered[..., -2:-1]
    apart = (magnitudes == largest) & (largest > OUTLIER_RATIO * second) & (second > 0)
    rounded = quantised_blocks(np.where(apart, 0, blocks)) + np.where(apart, blocks, 0)
    kept: NDArray[np.float32] = rounded.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return kept


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
