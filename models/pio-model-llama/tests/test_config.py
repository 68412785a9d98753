"""Configs: defaults, both rotary spellings, and every way to be wrong."""

import msgspec
import pytest

from inference_pio.interfaces import ConfigError, DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from inference_pio.models.llama import PLUGIN

SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}


# The head has eight or more pairs of dimensions, and each needs a factor.
LONGROPE_OF_THREE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.0, 1.0],
    "long_factor": [2.0, 2.0, 2.0],
}


def test_absent_keys_take_the_reference_defaults():
    """A sparse config means what it means to the reference implementation."""
    config = PLUGIN.parse_config(SMALL)
    assert config.kv_heads == 4
    assert config.head_size == 16
    assert config.max_position_embeddings == config.context == 2048
    assert config.rms_norm_eps == 1e-6
    assert config.rope.theta == 10_000.0
    assert config.rope.scaling is None
    assert not config.attention_bias
    assert not config.mlp_bias


def test_null_heads_and_head_dim_are_derived():
    """Published configs write null for what follows from the rest."""
    config = PLUGIN.parse_config({**SMALL, "num_key_value_heads": None, "head_dim": None})
    assert (config.kv_heads, config.head_size) == (4, 16)


def test_a_published_config_parses():
    """SmolLM2's own config.json has no key that is refused."""
    config = PLUGIN.parse_config(SMOLLM2)
    assert config.rope.theta == 100_000.0
    assert (config.kv_heads, config.head_size, config.context) == (3, 64, 8192)
    assert config.eos_token_id == (2,)


@pytest.mark.parametrize(
    ("scaling", "expected", "context"),
    [
        ({"type": "linear", "factor": 2.0}, LinearScaling(factor=2.0), 2048),
        ({"type": "dynamic", "factor": 2.0}, DynamicScaling(factor=2.0, original_max_position=2048), 4096),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
            YarnScaling(factor=4.0, original_max_position=1024),
            4096,
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
            Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=1024),
            2048,
        ),
    ],
    ids=["linear", "dynamic", "yarn", "llama3"],
)
def test_rope_scaling_sets_the_context(scaling, expected, context):
    """Both spellings give one rule; yarn and dynamic NTK extend the context, the others state it."""
    old = PLUGIN.parse_config({**SMALL, "rope_theta": 5e5, "rope_scaling": scaling})
    kind = scaling.get("rope_type", scaling.get("type"))
    table = {**{key: value for key, value in scaling.items() if key != "type"}, "rope_type": kind, "rope_theta": 5e5}
    new = PLUGIN.parse_config({**SMALL, "rope_parameters": table})
    assert old == new
    assert old.rope.scaling == expected
    assert old.context == context


def test_several_end_tokens_are_kept():
    """Chat models end with any of a list of tokens."""
    config = PLUGIN.parse_config({**SMALL, "eos_token_id": [7, 9]})
    assert PLUGIN.shape(config, tied_head=False).eos_token_ids == (7, 9)


def test_config_is_frozen():
    """Nothing downstream can change a config."""
    with pytest.raises(AttributeError, match="immutable"):
        PLUGIN.parse_config(SMALL).hidden_size = 1
    assert isinstance(PLUGIN.parse_config(SMALL), msgspec.Struct)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sise": 64}, "hidden_sise"),
        ({"hidden_size": 63}, r"hidden_size \(63\) must be a multiple of num_attention_heads \(4\)"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"),
        ({"head_dim": 15}, "head_dim 15 .* must be an even number"),
        ({"partial_rotary_factor": 0.5}, r"this family turns whole heads, got partial_rotary_factor 0\.5"),
        ({"max_position_embeddings": 2**25}, "max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e5}}, "a context of .* tokens is beyond the 16777216"),
        ({"rope_scaling": LONGROPE_OF_THREE}, "short_factor"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10_000}, "num_hidden_layers"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"eos_token_id": 100}, "eos_token_id"),
        ({"bos_token_id": -3}, "bos_token_id"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "spiral"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_configs_name_key_and_value(change, message):
    """Each mistake is refused with the key, the value or both sizes in the message."""
    with pytest.raises(ConfigError, match=message):
        PLUGIN.parse_config({**SMALL, **change})


def test_missing_size_is_named():
    """A config without a size that has no default is refused."""
    with pytest.raises(ConfigError, match="intermediate_size"):
        PLUGIN.parse_config({key: value for key, value in SMALL.items() if key != "intermediate_size"})


def test_unknown_keys_can_be_accepted():
    """The user may take the risk that an unknown key does not matter."""
    config = PLUGIN.parse_config({**SMALL, "hidden_sise": 64}, ignore_unknown=True)
    assert config == PLUGIN.parse_config(SMALL)
