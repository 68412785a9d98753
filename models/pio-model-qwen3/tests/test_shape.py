"""What the plugin says of a model without building it, against the model that it builds and the reference's."""

import math

import pytest
import torch

from inference_pio.attention import get_backend
from inference_pio.layers import DenseLinear
from inference_pio.models.qwen3 import PLUGIN
from inference_pio.testing import load_model, load_reference

VARIANTS = {"gqa": {}, "tied": {"tie_word_embeddings": True}, "biased": {"attention_bias": True}}
RAW = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_exactly(tiny_checkpoint, variant):
    """The count without torch is that of the reference's model."""
    folder = tiny_checkpoint("qwen3", **VARIANTS[variant])
    loaded = load_model(PLUGIN, folder)
    assert loaded.shape.num_parameters == load_reference(folder).num_parameters()
    assert loaded.tied_head == (variant == "tied")


@pytest.mark.parametrize("layout", ["safetensors", "gguf"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied_head", [False, True])
def test_rules_fill_every_parameter_once(layout, bias, tied_head):
    """The weight map and the module agree on the parameters, the head apart where it is tied."""
    config = PLUGIN.parse_config({**RAW, "attention_bias": bias})
    with torch.device("meta"):
        module = PLUGIN.build(config, attention=get_backend("sdpa"), linear=DenseLinear(), tied_head=tied_head)
    targets = [rule.target for rule in PLUGIN.weight_map(config, layout).rules]
    assert len(targets) == len(set(targets))
    parameters = {name for name, _ in module.named_parameters()}
    assert set(targets) - {"head.weight"} == parameters - {"head.weight"}
    assert tied_head or "head.weight" in parameters
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    count = sum(math.prod(parameter.shape) for parameter in module.parameters())
    assert PLUGIN.shape(config, tied_head=tied_head).num_parameters == count


@pytest.mark.parametrize("layout", ["safetensors", "gguf"])
def test_no_rows_change_order(layout):
    """This family's files keep queries and keys in half-split rotary order, GGUF too."""
    assert all(rule.heads == () for rule in PLUGIN.weight_map(PLUGIN.parse_config(RAW), layout).rules)


def test_unknown_layout_is_refused():
    """A caller's mistake names the layouts that exist."""
    with pytest.raises(ValueError, match=r"layout must be one of .*'onnx'"):
        PLUGIN.weight_map(PLUGIN.parse_config(RAW), "onnx")
