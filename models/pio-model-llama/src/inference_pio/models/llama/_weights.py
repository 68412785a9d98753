"""How the model's parameters are made from a checkpoint, as data."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_pio.interfaces import Llama3Scaling, LongRopeScaling, WeightMap, WeightRule

if TYPE_CHECKING:
    from inference_pio.models.llama._config import LlamaConfig

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
            "attention.output": ("self_attn.o_proj",),
            "mlp_norm": ("post_attention_layernorm",),
            "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down": ("mlp.down_proj",),
        },
        "gguf": {
            "attention_norm": ("attn_norm",),
            "attention.qkv": ("attn_q", "attn_k", "attn_v"),
            "attention.output": ("attn_output",),
            "mlp_norm": ("ffn_norm",),
            "mlp.gate_up": ("ffn_gate", "ffn_up"),
            "mlp.down": ("ffn_down",),
        },
    }
)


def weight_map(config: LlamaConfig, layout: str) -> WeightMap:
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
    biased |= {"mlp.gate_up", "mlp.down"} if config.mlp_bias else set()
    # This family's GGUF files store the rows of queries and keys in interleaved rotary order.
    heads = {"attention.qkv": (config.num_attention_heads, config.kv_heads, 0)} if layout == "gguf" else {}
    for index in range(config.num_hidden_layers):
        prefix = _LAYER_PREFIX[layout].format(index)
        for part, names in _LAYER[layout].items():
            for kind in ("weight", "bias") if part in biased else ("weight",):
                sources = tuple(f"{prefix}{name}.{kind}" for name in names)
                target = f"layers.{index}.{part}.{kind}"
                rules.append(WeightRule(target=target, sources=sources, heads=heads.get(part, ())))
    return WeightMap(rules=tuple(rules), ignore=_ignored(config, layout))


def _ignored(config: LlamaConfig, layout: str) -> tuple[str, ...]:
    """Tensors that some checkpoints store although they follow from the config."""
    if layout == "safetensors":
        return (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    # Divisors of the rotary frequencies. Where the config does not have them, the numbers would be wrong without this
    # tensor: it is left out here, so that loading refuses the file for a tensor that nothing takes.
    known = isinstance(config.rope.scaling, Llama3Scaling | LongRopeScaling)
    return (r"rope_freqs\.weight",) if known else ()
