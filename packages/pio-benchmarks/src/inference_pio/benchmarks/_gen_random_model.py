"""GGUF files of random weights in the shape of a real model: its speed without its download.

Blocks are drawn as they are stored, not quantised from drawn weights, so half a billion parameters take seconds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import InvalidRequestError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import gguf
    from numpy.typing import NDArray

BLOCK = 32
"""Weights that share a scale in Q4_0 and Q8_0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomShape:
    """Sizes of a Qwen3 model whose embedding is its head; matrices become Q4_0 and the head Q8_0.

    Attributes:
        num_layers: Decoder layers.
        hidden_size: ``E``, a multiple of 32.
        num_heads: ``H``.
        num_kv_heads: ``K``.
        head_dim: ``D``; ``H * D`` is a multiple of 32.
        intermediate_size: ``F``, a multiple of 32.
        vocab_size: ``V``.
        max_position: Context length in tokens.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int


SHAPES: Mapping[str, RandomShape] = MappingProxyType(
    {
        "qwen3-0.6b": RandomShape(
            num_layers=28,
            hidden_size=1024,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            intermediate_size=3072,
            vocab_size=151_936,
            max_position=40_960,
        )
    }
)
"""By the name of the model that has the shape."""

_ROPE_THETA = 1_000_000.0
_EPSILON = 1e-6


def random_model(name: str, cache: Path, progress: Callable[[str], None]) -> Path:
    """The random model of shape ``name``: made once, then kept in ``cache``.

    Raises:
        InvalidRequestError: No such shape.
        MissingDependencyError: The ``gguf`` package is not installed.
    """
    if name not in SHAPES:
        raise InvalidRequestError(f"no shape {name!r}", hint=f"give {', '.join(SHAPES)}")
    target = cache / "models" / f"random-{name}-q4_0.gguf"
    if target.is_file():
        return target
    progress(f"making a random model of the shape of {name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        write_random_model(SHAPES[name], partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def write_random_model(shape: RandomShape, path: Path, *, seed: int = 0) -> None:
    """Write a GGUF file of ``shape`` without a vocabulary, which llama.cpp reads as well.

    Raises:
        MissingDependencyError: The ``gguf`` package is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "making a random model needs gguf, which is not installed", hint="pip install gguf"
        ) from error
    writer = gguf.GGUFWriter(path, "qwen3")
    _add_sizes(writer, shape)
    # What llama.cpp calls a model that has tokens but no texts for them.
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(seed)
    encodings = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
    for name, (rows, columns) in _matrices(shape).items():
        encoding = "Q8_0" if name == "token_embd.weight" else "Q4_0"
        writer.add_tensor(name, _BLOCKS[encoding](random, rows, columns), raw_dtype=encodings[encoding])
    for name, size in _vectors(shape).items():
        writer.add_tensor(name, 1 + 0.1 * random.standard_normal(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q4_0_blocks(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Random Q4_0 blocks, uint8 (rows, columns / 32 * 18): a float16 scale and 32 numbers of 4 bits each.

    A weight is ``scale * (number - 8)``, of mean 0 and standard deviation ``columns ** -0.5``.
    """
    blocks = np.empty((rows, columns // BLOCK, 18), dtype=np.uint8)
    # The standard deviation of 15 equally likely neighbours: 0 is left out, so that the mean is 8.
    scale = columns**-0.5 / np.sqrt((15**2 - 1) / 12)
    _put_scales(blocks, random, scale)
    low, high = random.integers(1, 16, size=(2, rows, columns // BLOCK, 16), dtype=np.uint8)
    blocks[:, :, 2:] = low | high << 4
    return blocks.reshape(rows, -1)


def q8_0_blocks(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Random Q8_0 blocks, uint8 (rows, columns / 32 * 34): a float16 scale and 32 signed bytes each.

    A weight is ``scale * byte``, of mean 0 and standard deviation ``columns ** -0.5``.
    """
    blocks = np.empty((rows, columns // BLOCK, 34), dtype=np.uint8)
    scale = columns**-0.5 / np.sqrt((255**2 - 1) / 12)
    _put_scales(blocks, random, scale)
    numbers = random.integers(-127, 128, size=(rows, columns // BLOCK, BLOCK), dtype=np.int8)
    blocks[:, :, 2:] = numbers.view(np.uint8)
    return blocks.reshape(rows, -1)


def _put_scales(blocks: NDArray[np.uint8], random: np.random.Generator, scale: float) -> None:
    """Float16 scales around ``scale`` at the start of each block, in the file's byte order, little-endian."""
    scales = (scale * random.uniform(0.8, 1.2, size=blocks.shape[:2])).astype("<f2")
    blocks[:, :, :2] = scales[:, :, None].view(np.uint8)


_BLOCKS = MappingProxyType({"Q4_0": q4_0_blocks, "Q8_0": q8_0_blocks})


def _matrices(shape: RandomShape) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix by its name in the file."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    layers = {f"blk.{index}.{name}.weight": size for index in range(shape.num_layers) for name, size in layer.items()}
    return {"token_embd.weight": (shape.vocab_size, hidden), **layers}


def _vectors(shape: RandomShape) -> dict[str, int]:
    """Length of each norm by its name in the file."""
    layer = {
        "attn_norm": shape.hidden_size,
        "attn_q_norm": shape.head_dim,
        "attn_k_norm": shape.head_dim,
        "ffn_norm": shape.hidden_size,
    }
    layers = {f"blk.{index}.{name}.weight": size for index in range(shape.num_layers) for name, size in layer.items()}
    return {"output_norm.weight": shape.hidden_size, **layers}


def _add_sizes(writer: gguf.GGUFWriter, shape: RandomShape) -> None:
    writer.add_context_length(shape.max_position)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_rope_freq_base(_ROPE_THETA)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_bos_token_id(shape.vocab_size - 2)
    writer.add_eos_token_id(shape.vocab_size - 1)
