"""Storage formats: how many elements and bytes a block has, and which NumPy dtype shows it without decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Encoding:
    """One storage format.

    Attributes:
        block_elements: Elements per block; 1 for a plain format.
        block_bytes: Bytes per block.
        dtype: NumPy dtype of the stored elements (bit patterns where NumPy lacks the type), or None for a block format.
    """

    block_elements: int
    block_bytes: int
    dtype: str | None = None


# Sizes of the block formats: ggml's block structures (ggml-common.h); a super-block has 256 elements.
ENCODINGS: Mapping[str, Encoding] = {
    "F64": Encoding(1, 8, "<f8"),
    "F32": Encoding(1, 4, "<f4"),
    "F16": Encoding(1, 2, "<f2"),
    "BF16": Encoding(1, 2, "<u2"),
    "F8_E4M3": Encoding(1, 1, "|u1"),
    "F8_E5M2": Encoding(1, 1, "|u1"),
    "I64": Encoding(1, 8, "<i8"),
    "I32": Encoding(1, 4, "<i4"),
    "I16": Encoding(1, 2, "<i2"),
    "I8": Encoding(1, 1, "|i1"),
    "U64": Encoding(1, 8, "<u8"),
    "U32": Encoding(1, 4, "<u4"),
    "U16": Encoding(1, 2, "<u2"),
    "U8": Encoding(1, 1, "|u1"),
    "BOOL": Encoding(1, 1, "|b1"),
    "Q4_0": Encoding(32, 2 + 16),
    "Q4_1": Encoding(32, 2 + 2 + 16),
    "Q5_0": Encoding(32, 2 + 4 + 16),
    "Q5_1": Encoding(32, 2 + 2 + 4 + 16),
    "Q8_0": Encoding(32, 2 + 32),
    "Q8_1": Encoding(32, 2 + 2 + 4 + 32),
    "Q2_K": Encoding(256, 16 + 64 + 2 + 2),
    "Q3_K": Encoding(256, 32 + 64 + 12 + 2),
    "Q4_K": Encoding(256, 2 + 2 + 12 + 128),
    "Q5_K": Encoding(256, 2 + 2 + 12 + 32 + 128),
    "Q6_K": Encoding(256, 128 + 64 + 16 + 2),
    "Q8_K": Encoding(256, 4 + 256 + 32),
    "IQ2_XXS": Encoding(256, 2 + 64),
    "IQ2_XS": Encoding(256, 2 + 64 + 8),
    "IQ3_XXS": Encoding(256, 2 + 64 + 32),
    "IQ1_S": Encoding(256, 2 + 32 + 16),
    "IQ4_NL": Encoding(32, 2 + 16),
    "IQ3_S": Encoding(256, 2 + 64 + 32 + 8 + 4),
    "IQ2_S": Encoding(256, 2 + 64 + 16),
    "IQ4_XS": Encoding(256, 2 + 2 + 128 + 4),
    "IQ1_M": Encoding(256, 32 + 16 + 8),
    "TQ1_0": Encoding(256, 2 + 4 * 13),
    "TQ2_0": Encoding(256, 2 + 64),
    "MXFP4": Encoding(32, 1 + 16),
    "NVFP4": Encoding(64, 4 + 32),
    "Q1_0": Encoding(128, 2 + 16),
}

SAFETENSORS_DTYPES = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
)

# ggml's type numbers (enum ggml_type). The gaps are types that were taken out again.
GGML_TYPES: Mapping[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}


def block_layout(encoding: str) -> tuple[int, int]:
    """Elements and bytes of one block of ``encoding``; a plain format has blocks of one element.

    Raises:
        ValueError: No such encoding.
    """
    try:
        layout = ENCODINGS[encoding]
    except KeyError:
        msg = f"unknown encoding {encoding!r}; known are {', '.join(ENCODINGS)}"
        raise ValueError(msg) from None
    return layout.block_elements, layout.block_bytes
