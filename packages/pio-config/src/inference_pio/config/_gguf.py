"""GGUF metadata in the spelling of ``config.json``.

A GGUF file says what it is in ``general.architecture`` and describes the model under keys with that prefix, such as
``llama.block_count``.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_pio.config._text import shown
from inference_pio.interfaces import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_KEYS = MappingProxyType(
    {
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "vocab_size": "vocab_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.sliding_window": "sliding_window",
        "rope.freq_base": "rope_theta",
    }
)

# Read below, or without influence on the computation.
_CONSUMED = frozenset(
    {
        "attention.value_length",
        "rope.dimension_count",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "tensor_data_layout",
    }
)

# Written also for models that have nothing of the kind; any other value changes the computation.
_NEUTRAL = MappingProxyType(
    {
        "expert_count": 0,
        "expert_used_count": 0,
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.yarn_attn_factor": 1.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_log_multiplier": 0.0,
        "rope.scaling.alpha": 0.0,
    }
)


def gguf_to_hf(
    metadata: Mapping[str, object], *, architecture: str, rope_factors: Sequence[float] | None = None
) -> dict[str, object]:
    """The ``config.json`` of the model that ``metadata`` describes, for :func:`build_config`.

    Keys of the architecture that have no counterpart come through under their GGUF name, so that a family which does
    not know them refuses the file instead of computing something else. A value per layer becomes one value where all
    layers agree. Whether the head is tied is not in the metadata: it is, if the file has no head.

    Llama 3's frequency scaling is not in the metadata either. Its files carry the tensor ``rope_freqs.weight`` with a
    divisor per frequency; without it the numbers would be wrong from the first token on. Whoever opened the file passes
    that tensor as ``rope_factors``. The result says ``longrope`` with the same divisors for every length and no
    attention factor, which is that computation exactly.

    Args:
        metadata: All key-value pairs of the file as plain values.
        architecture: Architecture string of the plugin that serves ``general.architecture``.
        rope_factors: The values of ``rope_freqs.weight``, or None if the file has no such tensor.

    Raises:
        ConfigError: No architecture, or a scaling rule that metadata alone cannot express.
    """
    prefix = metadata.get("general.architecture")
    if not isinstance(prefix, str) or not prefix:
        raise ConfigError(f"GGUF metadata: general.architecture must be a non-empty string, got {shown(prefix)}")
    start = f"{prefix}."
    own = {key.removeprefix(start): _plain(value) for key, value in metadata.items() if key.startswith(start)}
    raw: dict[str, object] = {"architectures": [architecture], "model_type": prefix}
    for key, value in own.items():
        if key not in _CONSUMED and not (key in _NEUTRAL and value == _NEUTRAL[key]):
            raw[_KEYS.get(key, f"{start}{key}")] = value
    _add_head_dim(raw, own, prefix)
    _add_vocabulary(raw, metadata)
    scaling = _scaling(own, prefix)
    if rope_factors is not None:
        if scaling is not None:
            raise ConfigError(
                f"GGUF metadata: {prefix}.rope.scaling.type and the tensor rope_freqs.weight exclude each other"
            )
        scaling = _fixed_factors(rope_factors, own.get("context_length"))
    if scaling is not None:
        raw["rope_scaling"] = scaling
    return raw


def _add_head_dim(raw: dict[str, object], own: Mapping[str, object], prefix: str) -> None:
    heads, size = raw.get("num_attention_heads"), raw.get("hidden_size")
    if raw.get("head_dim") is None and isinstance(heads, int) and isinstance(size, int) and heads > 0:
        raw["head_dim"] = size // heads
    head_dim, value_dim, rotated = (
        raw.get("head_dim"),
        own.get("attention.value_length"),
        own.get("rope.dimension_count"),
    )
    if value_dim is not None and value_dim != head_dim:
        raise ConfigError(
            f"GGUF metadata: {prefix}.attention.value_length {shown(value_dim)} is not the head dimension "
            f"{shown(head_dim)}"
        )
    if rotated is not None and rotated != head_dim:
        if not isinstance(rotated, int) or not isinstance(head_dim, int) or not 0 < rotated < head_dim:
            raise ConfigError(
                f"GGUF metadata: {prefix}.rope.dimension_count {shown(rotated)} must be from 1 to the head dimension "
                f"{shown(head_dim)}"
            )
        raw["partial_rotary_factor"] = _share(rotated, head_dim)


def _share(rotated: int, head_dim: int) -> float:
    """A share of ``head_dim`` that, multiplied and cut to an integer as everyone does, gives ``rotated`` back."""
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else math.nextafter(share, 1.0)


def _add_vocabulary(raw: dict[str, object], metadata: Mapping[str, object]) -> None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if raw.get("vocab_size") is None and tokens is not None and hasattr(tokens, "__len__"):
        raw["vocab_size"] = len(tokens)
    for key, name in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        if (token := _plain(metadata.get(f"tokenizer.ggml.{name}_token_id"))) is not None:
            raw[key] = token
    # End of text, of turn and of message: a chat model may end with any of them.
    ends = _distinct(_plain(metadata.get(f"tokenizer.ggml.{name}_token_id")) for name in ("eos", "eot", "eom"))
    if ends:
        raw["eos_token_id"] = ends[0] if len(ends) == 1 else ends


def _scaling(own: Mapping[str, object], prefix: str) -> dict[str, object] | None:
    """The rotary scaling rule, or None. A factor without a rule's name is linear, as in llama.cpp."""
    rule = own.get("rope.scaling.type", "linear")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear"))
    if rule == "none":
        return None
    if rule == "linear":
        return None if factor in (None, 0, 1) else {"rope_type": "linear", "factor": factor}
    if rule == "yarn":
        if factor is None:
            raise ConfigError(f"GGUF metadata: {prefix}.rope.scaling.factor is missing")
        optional = {
            "original_max_position_embeddings": own.get("rope.scaling.original_context_length"),
            "beta_fast": own.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": own.get("rope.scaling.yarn_beta_slow"),
        }
        given = {key: value for key, value in optional.items() if value is not None}
        return {"rope_type": "yarn", "factor": factor, **given}
    raise ConfigError(
        f"GGUF metadata: {prefix}.rope.scaling.type {shown(rule)} is not supported; supported are none, linear, yarn"
    )


def _fixed_factors(factors: Sequence[float], context_length: object) -> dict[str, object]:
    divisors = [float(factor) for factor in factors]
    return {
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context_length,
    }


def _plain(value: object) -> object:
    """``value`` without NumPy, whose scalars and arrays a reader may hand over; equal values per layer become one."""
    tolist = getattr(value, "tolist", None)
    if tolist is not None:
        value = tolist()
    if isinstance(value, list | tuple) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _distinct(values: Iterable[object]) -> list[object]:
    return list(dict.fromkeys(value for value in values if value is not None))
