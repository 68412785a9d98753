"""The gated MLP against the modules of transformers."""

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from inference_pio.layers import GatedMLP

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def reference(activation, bias):
    if activation == "gelu_tanh":
        return Gemma3MLP(Gemma3TextConfig(hidden_size=24, intermediate_size=40, hidden_activation="gelu_pytorch_tanh"))
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}
    return LlamaMLP(LlamaConfig(**sizes, hidden_act=activation, mlp_bias=bias))


@pytest.mark.parametrize("activation, bias", [("silu", False), ("silu", True), ("gelu", False), ("gelu_tanh", False)])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("tokens", [0, 1, 7, 65])
def test_gated_mlp_equals_transformers(activation, bias, dtype, tokens, rng):
    """Merging gate and up changes nothing but the rounding of sums."""
    theirs = reference(activation, bias)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2, generator=rng)
    theirs = theirs.to(dtype).requires_grad_(requires_grad=False)
    ours = GatedMLP(24, 40, activation=activation, bias=bias)
    for name, sources in {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}.items():
        for kind in ("weight", "bias") if bias else ("weight",):
            parts = [getattr(theirs.get_submodule(source), kind) for source in sources]
            setattr(ours.get_submodule(name), kind, nn.Parameter(torch.cat(parts), requires_grad=False))
    x = torch.randn(tokens, 24, generator=rng).to(dtype)
    with torch.inference_mode():
        out = ours(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out, theirs(x), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_gated_mlp_parameters_are_merged():
    """Gate and up are one matrix, gate first, under the documented names."""
    with torch.device("meta"):
        mlp = GatedMLP(24, 40, bias=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in mlp.named_parameters()}
    assert shapes == {"gate_up.weight": (80, 24), "gate_up.bias": (80,), "down.weight": (24, 40), "down.bias": (24,)}
    assert "activation=silu" in repr(mlp)


def test_gated_mlp_refuses_an_unknown_activation():
    """The message lists what there is."""
    with pytest.raises(ValueError, match=r"one of 'silu', 'gelu', 'gelu_tanh', got 'swish'"):
        GatedMLP(8, 16, activation="swish")
