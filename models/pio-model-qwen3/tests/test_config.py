"""Configs: defaults, rotary spellings, sliding layers, and every way to be wrong."""

import pytest

from inference_pio.interfaces import ConfigError, YarnScaling
from inference_pio.models.qwen3 import PLUGIN

SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}

QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


# The head has eight or more pairs of dimensions, and each needs a factor.
LONGROPE_OF_THREE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.0, 1.0],
    "long_factor": [2.0, 2.0, 2.0],
}


def windows(raw):
    shape = PLUGIN.shape(PLUGIN.parse_config(raw), tied_head=True)
    return [spec.window for spec in shape.attention]


def test_a_published_config_parses():
    """Qwen3-0.6B's own config.json has no key that is refused, and its heads are wider than hidden over heads."""
    config = PLUGIN.parse_config(QWEN3_0_6B)
    shape = PLUGIN.shape(config, tied_head=True)
    assert config.rope.theta == 1e6
    assert {spec.head_dim for spec in shape.attention} == {128}
    assert shape.max_position == 40_960
    assert shape.kv_elements_per_token == 57_344
    assert round(shape.num_parameters / 1e6, 1) == 596.0
    assert (shape.bos_token_id, shape.eos_token_ids) == (151_643, (151_645,))


def test_yarn_extends_the_context():
    """The published recipe for long prompts: a factor of 4 over 32768 tokens."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    config = PLUGIN.parse_config({**QWEN3_0_6B, "rope_scaling": scaling})
    assert config.rope.scaling == YarnScaling(factor=4.0, original_max_position=32_768)
    assert config.context == 131_072


def test_a_window_that_is_not_used_changes_nothing():
    """Published configs carry a window beside use_sliding_window = false."""
    assert windows({**SMALL, "sliding_window": 8, "use_sliding_window": False, "max_window_layers": 0}) == [None] * 4


def test_layers_from_max_window_layers_on_slide():
    """Older configs give the first sliding layer."""
    raw = {**SMALL, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}
    assert windows(raw) == [None, None, None, 8]


def test_layer_types_win():
    """Newer configs name the kind of each layer."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    raw = {**SMALL, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3, "layer_types": kinds}
    assert windows(raw) == [8, None, 8, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dims": 64}, "head_dims.*head_dim"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"),
        ({"head_dim": 15}, "head_dim 15 .* must be an even number"),
        ({"partial_rotary_factor": 0.5}, r"this family turns whole heads, got partial_rotary_factor 0\.5"),
        ({"max_position_embeddings": 2**25}, "max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e5}}, "a context of .* tokens is beyond the 16777216"),
        ({"rope_scaling": LONGROPE_OF_THREE}, "short_factor"),
        ({"layer_types": ["full_attention"]}, r"layer_types has 1 entries for num_hidden_layers \(4\)"),
        ({"layer_types": ["sliding_attention"] * 4}, "use_sliding_window is False and sliding_window is None"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"max_window_layers": -1}, "max_window_layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"eos_token_id": [3, 100]}, "eos_token_id"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_configs_name_key_and_value(change, message):
    """Each mistake is refused with the key, the value or both sizes in the message."""
    with pytest.raises(ConfigError, match=message):
        PLUGIN.parse_config({**SMALL, **change})


def test_unknown_keys_can_be_accepted():
    """The user may take the risk that an unknown key does not matter."""
    config = PLUGIN.parse_config({**SMALL, "head_dims": 64}, ignore_unknown=True)
    assert config == PLUGIN.parse_config(SMALL)


@pytest.mark.parametrize("field", ["hidden_size", "head_dim"])
def test_config_is_frozen(field):
    """Nothing downstream can change a config."""
    with pytest.raises(AttributeError, match="immutable"):
        setattr(PLUGIN.parse_config(SMALL), field, 1)
