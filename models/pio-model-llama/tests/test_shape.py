"""What the plugin says of a model without building it, against the model that it builds and the reference's."""

import math

import pytest
import torch

from inference_pio.attention import get_backend
from inference_pio.layers import DenseLinear
from inference_pio.models.llama import PLUGIN
from inference_pio.testing import load_model, load_reference

VARIANTS = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 48},
}
RAW = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(config, *, tied_head):
    with torch.device("meta"):
        return PLUGIN.build(config, attention=get_backend("sdpa"), linear=DenseLinear(), tied_head=tied_head)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_exactly(tiny_checkpoint, variant):
    """The count without torch is that of the reference's model."""
    folder = tiny_checkpoint("llama", **VARIANTS[variant])
    loaded = load_model(PLUGIN, folder)
    assert loaded.shape.num_parameters == load_reference(folder).num_parameters()
    assert loaded.tied_head == (variant == "tied")


def test_smollm2_counts_134_million():
    """The real model's published size."""
    raw = {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }
    shape = PLUGIN.shape(PLUGIN.parse_config(raw), tied_head=True)
    assert shape.num_parameters == 134_515_008
    assert shape.kv_elements_per_token == 11_520
    assert shape.num_layers == len(shape.attention) == 30


@pytest.mark.parametrize("layout", ["safetensors", "gguf"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied_head", [False, True])
def test_rules_fill_every_parameter_once(layout, bias, tied_head):
    """The weight map and the module agree on the parameters, the head apart where it is tied."""
    config = PLUGIN.parse_config({**RAW, "attention_bias": bias, "mlp_bias": bias})
    module = build(config, tied_head=tied_head)
    targets = [rule.target for rule in PLUGIN.weight_map(config, layout).rules]
    assert len(targets) == len(set(targets))
    parameters = {name for name, _ in module.named_parameters()}
    assert set(targets) - {"head.weight"} == parameters - {"head.weight"}
    assert tied_head or "head.weight" in parameters
    count = sum(math.prod(parameter.shape) for parameter in module.parameters())
    assert PLUGIN.shape(config, tied_head=tied_head).num_parameters == count


def test_only_the_head_is_optional():
    """Whatever else a file lacks is an error."""
    weight_map = PLUGIN.weight_map(PLUGIN.parse_config(RAW), "safetensors")
    assert [rule.target for rule in weight_map.rules if rule.optional] == ["head.weight"]


def test_only_gguf_queries_and_keys_change_row_order():
    """The row order of values and of safetensors files is left alone."""
    config = PLUGIN.parse_config({**RAW, "num_key_value_heads": 2})
    assert all(rule.heads == () for rule in PLUGIN.weight_map(config, "safetensors").rules)
    heads = {rule.target: rule.heads for rule in PLUGIN.weight_map(config, "gguf").rules if rule.heads}
    assert heads == {"layers.0.attention.qkv.weight": (4, 2, 0), "layers.1.attention.qkv.weight": (4, 2, 0)}


def test_unknown_layout_is_refused():
    """A caller's mistake names the layouts that exist."""
    with pytest.raises(ValueError, match=r"layout must be one of .*'onnx'"):
        PLUGIN.weight_map(PLUGIN.parse_config(RAW), "onnx")


def test_building_on_meta_allocates_nothing():
    """The core builds first and streams weights in afterwards."""
    module = build(PLUGIN.parse_config(RAW), tied_head=False)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
