"""From a mapping to a typed frozen config: what is converted, passed over, refused."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from inference_pio.config import build_config, token_ids
from inference_pio.interfaces import ConfigError, LinearScaling, RopeParameters

Size = Annotated[int, Meta(ge=1, le=1 << 20)]


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """A family's config as a model package writes it."""

    hidden_size: Size
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1024)]
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    rms_norm_eps: Annotated[float, Meta(gt=0, le=1)] = 1e-6
    mlp_bias: bool = False
    hidden_act: str = "silu"
    max_position_embeddings: Size = 2048
    eos_token_id: int | tuple[int, ...] | None = None
    rope: RopeParameters

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            msg = f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            raise ValueError(msg)


RAW = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

# What the hub's Llama-3.2 and SmolLM2 files hold besides the architecture.
FURNITURE = {
    "_name_or_path": "x",
    "architectures": ["LlamaForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.02,
    "is_llama_config": True,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "quantization_config": None,
    "_attn_implementation_autoset": True,
}


def test_values_and_defaults():
    """Given keys are converted, others take the family's defaults, rotary keys become one value."""
    raw = RAW | FURNITURE | {"rms_norm_eps": 1, "eos_token_id": [2, 3], "rope_theta": 5e5}
    config = build_config(Family, raw)
    assert config == Family(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        rms_norm_eps=1.0,
        eos_token_id=(2, 3),
        rope=RopeParameters(theta=5e5),
    )
    assert isinstance(config.rms_norm_eps, float)


def test_rope_takes_the_context_from_the_config():
    """The rotary parameters see the family's context length, given or default."""

    def original(raw):
        return build_config(Family, RAW | raw).rope.scaling.original_max_position

    scaling = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert original(scaling) == 2048
    assert original(scaling | {"max_position_embeddings": 512}) == 512


def test_family_may_keep_rotary_keys_itself():
    """A family that declares `rope_theta` and the rest reads them as they are."""

    class Own(msgspec.Struct, frozen=True, kw_only=True):
        rope_theta: float = 1e4
        rope_scaling: dict[str, object] | None = None

    raw = {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert build_config(Own, raw) == Own(rope_theta=7.0, rope_scaling={"type": "linear", "factor": 2.0})
    with pytest.raises(ConfigError, match="unknown key 'partial_rotary_factor'"):
        build_config(Own, raw | {"partial_rotary_factor": 0.5})


def test_null_means_not_given_where_none_is_no_value():
    """Hugging Face writes null for "take the default"."""
    config = build_config(Family, RAW | {"mlp_bias": None, "num_key_value_heads": None})
    assert (config.mlp_bias, config.num_key_value_heads) == (False, None)
    with pytest.raises(ConfigError, match=r"^model config: hidden_size missing$"):
        build_config(Family, RAW | {"hidden_size": None})


def test_aliases():
    """Another spelling stands for the field; two that agree are one, two that disagree are refused."""
    aliases = {"n_layer": "num_hidden_layers"}
    raw = {"hidden_size": 64, "n_layer": 3, "num_attention_heads": 4}
    assert build_config(Family, raw, aliases=aliases).num_hidden_layers == 3
    assert build_config(Family, raw | {"num_hidden_layers": 3}, aliases=aliases).num_hidden_layers == 3
    with pytest.raises(ConfigError, match="num_hidden_layers = 4 contradicts another spelling of num_hidden_layers"):
        build_config(Family, raw | {"num_hidden_layers": 4}, aliases=aliases)


def test_unknown_key_names_the_nearest_and_the_way_out():
    """An unknown key may change what the model computes, so it is refused, with the likeliest slip and the way out."""
    with pytest.raises(
        ConfigError,
        match=r"^model config: unknown key 'hiden_size' and 1 more \(did you mean 'hidden_size'\? "
        r"PIO_IGNORE_UNKNOWN_KEYS=1 or --set ignore_unknown_keys=true reads the model without it\)$",
    ) as caught:
        build_config(Family, RAW | {"hiden_size": 3, "zzz": 1})
    assert caught.value.exit_code == 2


def test_unknown_key_can_be_passed_over():
    """By the setting, or because the family says that it does not matter."""
    plain = build_config(Family, RAW)
    raw = RAW | {"zzz": 1}
    assert build_config(Family, raw, ignore_unknown=True) == plain
    assert build_config(Family, raw, ignored={"zzz"}) == plain
    raw = RAW | {"rope_scaling": {"type": "linear", "factor": 2.0, "zzz": 1}, "rope_interleaved": True}
    assert build_config(Family, raw, ignore_unknown=True).rope.scaling == LinearScaling(factor=2.0)


def test_key_that_is_harmless_at_one_value_only():
    """`rope_interleaved: false` says nothing, `true` would need another computation."""
    assert build_config(Family, RAW | {"rope_interleaved": False}) == build_config(Family, RAW)
    with pytest.raises(ConfigError, match=r"rope_interleaved is supported as False only \(PIO_IGNORE"):
        build_config(Family, RAW | {"rope_interleaved": True})
    with pytest.raises(ConfigError, match="quantization_config is supported as None only"):
        build_config(Family, RAW | {"quantization_config": {"quant_method": "awq"}})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "^x: hidden_size, num_hidden_layers, num_attention_heads missing$"),
        (
            RAW | {"num_hidden_layers": 10**9},
            "^x: num_hidden_layers must be an integer from 1 to 1024, got 1000000000$",
        ),
        (RAW | {"num_hidden_layers": 10**400}, "got an integer of 1329 bits$"),
        (RAW | {"hidden_size": 0}, "hidden_size must be an integer from 1 to 1048576, got 0$"),
        (RAW | {"hidden_size": "64"}, "hidden_size must be an integer from 1 to 1048576, got '64'$"),
        (RAW | {"hidden_size": 64.5}, "got 64.5$"),
        (RAW | {"hidden_size": True}, "got True$"),
        (RAW | {"hidden_size": [64, 32]}, r"got \[64, 32\]$"),
        (RAW | {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number above 0 and at most 1, got nan$"),
        (RAW | {"rms_norm_eps": 0}, "got 0$"),
        (RAW | {"mlp_bias": 1}, "mlp_bias must be true or false, got 1$"),
        (RAW | {"hidden_act": 3}, "hidden_act must be a string, got 3$"),
        (RAW | {"hidden_act": {"a": {"b": 1}}}, "got a table of 1$"),
        (RAW | {"eos_token_id": [1, "x"]}, r"eos_token_id must be .*, got \[1, 'x'\]$"),
        (RAW | {"num_attention_heads": 5}, "^x: hidden_size 64 must be a multiple of num_attention_heads 5$"),
        (RAW | {"rope_theta": -1}, "^x: rope_theta must be a finite number above 1 and at most 1e.15, got -1$"),
        (RAW | {"max_position_embeddings": -1, "rope_theta": 1e4}, "max_position_embeddings must be"),
        (RAW | {"rope": {"theta": 3}}, "unknown key 'rope'"),
        (RAW | {7: 1}, "unknown key 7 "),
        (RAW | {"a\nb": 1}, r"unknown key 'a\\nb' "),
    ],
)
def test_bad_value_is_one_line_with_origin_key_and_value(raw, message):
    """One line with what was read, the key, what is allowed and the value."""
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(Family, raw, origin="x")
    assert "\n" not in str(caught.value)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
family_keys = st.sampled_from(
    [*(field.name for field in msgspec.structs.fields(Family)), "rope_theta", "rope_scaling", "rope_parameters"]
)


@given(raw=st.dictionaries(family_keys | st.text(), plain_values, max_size=4))
def test_any_mapping_gives_a_config_or_one_short_line(raw):
    """Hostile values end in a config within its bounds or in our error: short, on one line, no other exception."""
    refusal = None
    try:
        config = build_config(Family, RAW | raw)
    except ConfigError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.isprintable()
        assert len(refusal) < 1000
    else:
        assert config.hidden_size % config.num_attention_heads == 0
        assert 0 < config.rms_norm_eps <= 1


def test_rope_field_needs_a_context_length():
    """A family that forgets `max_position_embeddings` is a mistake in its code."""

    class NoContext(msgspec.Struct, frozen=True, kw_only=True):
        rope: RopeParameters

    with pytest.raises(ValueError, match="needs a field max_position_embeddings"):
        build_config(NoContext, {})


def test_required_context_length():
    """A family without a default context reports it as missing like any key."""

    class Strict(msgspec.Struct, frozen=True, kw_only=True):
        max_position_embeddings: int
        rope: RopeParameters

    with pytest.raises(ConfigError, match=r"^model config: max_position_embeddings missing$"):
        build_config(Strict, {})


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ()), (2, (2,)), ([2, 3], (2, 3)), ((5,), (5,)), ([], ()), (0, (0,)), (99, (99,))]
)
def test_token_ids(value, expected):
    """One id, several or none, always as a tuple."""
    assert token_ids({"eos_token_id": value, "vocab_size": 100}, "eos_token_id") == expected


def test_token_ids_of_absent_key():
    """Absent is none."""
    assert token_ids({}, "eos_token_id") == ()


@pytest.mark.parametrize("value", [100, -1, True, "2", 1.0, [1, None], [[1]]])
def test_token_ids_refuses(value):
    """Ids are integers below the vocabulary's size."""
    with pytest.raises(ConfigError, match=r"^eos_token_id must be a token id from 0 to 99 or a list of them, got "):
        token_ids({"eos_token_id": value, "vocab_size": 100}, "eos_token_id")


def test_token_ids_without_vocabulary_size():
    """A generation config has no vocabulary: any id that fits 31 bits."""
    assert token_ids({"x": 2**31 - 1}, "x") == (2**31 - 1,)
    with pytest.raises(ConfigError, match="from 0 to 2147483647"):
        token_ids({"x": 2**31}, "x")
