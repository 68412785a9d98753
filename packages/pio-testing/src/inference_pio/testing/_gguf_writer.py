"""Tiny checkpoints as GGUF files, written through the ``gguf`` package.

Independent of ``pio-weights``: names, block formats and the row order come from the format's reference library.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import safetensors.numpy
from gguf.quants import quantize

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PERMUTED_ARCHITECTURES = frozenset({"llama"})
"""GGUF architectures whose query and key rows are stored in interleaved rotary order."""


def write_gguf(folder: Path, path: Path, *, encoding: str = "F32") -> Path:
    """Convert the float32 checkpoint in ``folder`` to a GGUF file without a vocabulary.

    Args:
        folder: Holds ``config.json`` and float32 safetensors of a dense family, as :func:`tiny_checkpoint` writes.
        path: The file to write.
        encoding: Block format of matrices, by its GGUF name; vectors stay float32.

    Returns:
        ``path``.

    Raises:
        ValueError: The family is unknown to the ``gguf`` package.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = gguf_architecture(config["model_type"])
    name = gguf.MODEL_ARCH_NAMES[architecture]
    writer = gguf.GGUFWriter(path, name)
    _add_sizes(writer, config)
    _add_rope(writer, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    matrix_type = gguf.GGMLQuantizationType[encoding]
    for hf_name, tensor in _tensors(folder).items():
        target = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"the GGUF architecture {name!r} has no name for {hf_name!r}")
        rows = interleave_rows(tensor, heads_of(hf_name, config)) if name in PERMUTED_ARCHITECTURES else tensor
        stored = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else matrix_type
        writer.add_tensor(target, quantize(rows, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_architecture(model_type: str) -> gguf.MODEL_ARCH:
    """The ``gguf`` package's architecture of the same name as ``model_type``.

    Raises:
        ValueError: It has none.
    """
    for architecture, name in gguf.MODEL_ARCH_NAMES.items():
        if name == model_type:
            return architecture
    raise ValueError(f"GGUF has no architecture {model_type!r}")


def heads_of(hf_name: str, config: dict[str, Any]) -> int:
    """Heads whose rows are permuted in tensor ``hf_name``: the query's or the key's, else 0."""
    if ".q_proj." in hf_name:
        return int(config["num_attention_heads"])
    if ".k_proj." in hf_name:
        return int(config["num_key_value_heads"])
    return 0


def interleave_rows(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from half-split order (0 1 2 ..., D/2 ...) to interleaved order (0 D/2 1 D/2+1 ...)."""
    if heads == 0:
        return rows
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def split_rows(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The inverse of :func:`interleave_rows`."""
    if heads == 0:
        return rows
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _tensors(folder: Path) -> dict[str, NDArray[np.float32]]:
    tensors: dict[str, NDArray[np.float32]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(safetensors.numpy.load_file(file))
    return tensors


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def _add_rope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "llama3":
        # No key says llama3 in this format: the divisors of the frequencies are stored as a tensor.
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, config["head_dim"]))
    elif kind != "default":
        raise ValueError(f"GGUF cannot say rope_type {kind!r}")


def llama3_divisors(rope: dict[str, Any], head_dim: int) -> NDArray[np.float32]:
    """Divisors of the rotary frequencies under Llama 3.1's rule, float32 (D / 2,)."""
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * pair / head_dim)
        kept = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / rope["factor"] + kept))
    return np.array(divisors, dtype=np.float32)
