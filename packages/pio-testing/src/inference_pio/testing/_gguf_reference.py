"""transformers' model of a GGUF file, filled through the ``gguf`` package.

The independent road to the same numbers: neither our reader nor our dequantisation nor our row order takes part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize

from inference_pio.testing._gguf_writer import PERMUTED_ARCHITECTURES, gguf_architecture, heads_of, split_rows

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel


def load_gguf_reference(path: Path, *, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """The model that transformers makes of the GGUF file at ``path``, dequantised to float32.

    Args:
        path: A file of a dense architecture that transformers calls by the same name.
        config: The model's config; None reads the sizes from the file, which must not scale its rotary embedding.

    Raises:
        ValueError: The file scales its rotary embedding and no ``config`` is given, or it lacks a tensor.
    """
    reader = gguf.GGUFReader(path)
    config = config or _config(reader)
    auto_model: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_model.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.load_state_dict(_state(reader, model, config), assign=True)
    model.tie_weights()
    # The frequencies of the rotary embedding are no part of the state, so they are still on meta.
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config)
    reference: PreTrainedModel = model.eval()
    return reference


def _state(reader: gguf.GGUFReader, model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    architecture = gguf_architecture(config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    permuted = gguf.MODEL_ARCH_NAMES[architecture] in PERMUTED_ARCHITECTURES
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tied = names.get_name("lm_head.weight", try_suffixes=(".weight",)) not in stored
    state: dict[str, torch.Tensor] = {}
    for hf_name, parameter in model.state_dict().items():
        source = "model.embed_tokens.weight" if tied and hf_name == "lm_head.weight" else hf_name
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name not in stored:
            raise ValueError(f"the file has no tensor for {hf_name!r}")
        tensor = stored[name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(parameter.shape))
        rows = split_rows(values, heads_of(hf_name, config.to_dict())) if permuted else values
        state[hf_name] = torch.from_numpy(np.array(rows, dtype=np.float32))
    return state


def _config(reader: gguf.GGUFReader) -> PreTrainedConfig:
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items() if "tokens" not in name}
    family = fields["general.architecture"]
    scaled = [name for name in fields if ".rope.scaling." in name]
    if scaled or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ValueError(f"the file scales its rotary embedding ({scaled or 'rope_freqs.weight'}): give the config")
    heads = fields[f"{family}.attention.head_count"]
    hidden = fields[f"{family}.embedding_length"]
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    return transformers.AutoConfig.for_model(
        family,
        vocab_size=int(embedding.shape[1]),
        hidden_size=hidden,
        intermediate_size=fields[f"{family}.feed_forward_length"],
        num_hidden_layers=fields[f"{family}.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields[f"{family}.attention.head_count_kv"],
        head_dim=fields.get(f"{family}.attention.key_length", hidden // heads),
        max_position_embeddings=fields[f"{family}.context_length"],
        rms_norm_eps=fields[f"{family}.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields[f"{family}.rope.freq_base"]},
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors),
    )
