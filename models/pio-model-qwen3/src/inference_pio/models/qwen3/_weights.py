"""How the model's parameters are made from a checkpoint, as data."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_pio.interfaces import WeightMap, WeightRule

if TYPE_CHECKING:
    from inference_pio.models.qwen3._config import Qwen3Config

# By layout: the prefix of a layer, and the tensors that each part of the model is made from, stacked in this order.
_LAYER_PREFIX = MappingProxyType({"safetensors": "model.layers.{}.", "gguf": "blk.{}."})
_OUTER = MappingProxyType(
    {
        "safetensors": {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
        "gguf": {"embedding": "token_embd", "norm": "output_norm", "head": "output"},
    }
)
_LAYER = MappingProxyType(
    {
        "safetensors": {
            "attention_norm": ("input_layernorm",),
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.query_norm": ("self_attn.q_norm",),
            "attention.key_norm": ("self_attn.k_norm",),
            "attention.output": ("self_attn.o_proj",),
            "mlp_norm": ("post_attention_layernorm",),
            "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down": ("mlp.down_proj",),
        },
        # This family's GGUF files keep queries and keys in half-split rotary order: no row moves.
        "gguf": {
            "attention_norm": ("attn_norm",),
            "attention.qkv": ("attn_q", "attn_k", "attn_v"),
            "attention.query_norm": ("attn_q_norm",),
            "attention.key_norm": ("attn_k_norm",),
            "attention.output": ("attn_output",),
            "mlp_norm": ("ffn_norm",),
            "mlp.gate_up": ("ffn_gate", "ffn_up"),
            "mlp.down": ("ffn_down",),
        },
    }
)


def weight_map(config: Qwen3Config, layout: str) -> WeightMap:
    """Rules for a checkpoint in ``layout``.

    Raises:
        ValueError: Neither ``"safetensors"`` nor ``"gguf"``.
    """
    if layout not in _LAYER:
        msg = f"layout must be one of {sorted(_LAYER)}, got {layout!r}"
        raise ValueError(msg)
    rules = [
        WeightRule(target=f"{part}.weight", sources=(f"{name}.weight",), optional=part == "head")
        for part, name in _OUTER[layout].items()
    ]
    biased = {"attention.qkv", "attention.output"} if config.attention_bias else set()
    for index in range(config.num_hidden_layers):
        prefix = _LAYER_PREFIX[layout].format(index)
        for part, names in _LAYER[layout].items():
            for kind in ("weight", "bias") if part in biased else ("weight",):
                sources = tuple(f"{prefix}{name}.{kind}" for name in names)
                rules.append(WeightRule(target=f"layers.{index}.{part}.{kind}", sources=sources))
    return WeightMap(rules=tuple(rules))
