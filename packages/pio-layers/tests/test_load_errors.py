"""Checkpoints and weight maps that do not fit: every message names the tensor, both shapes and the way out."""

import numpy as np
import pytest
import torch
from torch import nn

from inference_pio.interfaces import MalformedFileError, WeightMap, WeightRule
from inference_pio.layers import Embedding, Linear, LMHead, load_weights

WHOLE = WeightRule(target="weight", sources=("w",))
MERGED = WeightRule(target="weight", sources=("a", "b"))


def zeros(*shape):
    return np.zeros(shape, dtype=np.float32)


def build(in_features=8, out_features=6):
    with torch.device("meta"):
        return Linear(in_features, out_features)


def load(module, source, *rules, ignore=()):
    weight_map = WeightMap(rules=rules, ignore=ignore)
    return load_weights(module, source, weight_map, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "tensors, rule, problem, hint",
    [
        (
            {"v": zeros(6, 8)},
            WHOLE,
            r"model\.gguf: tensor 'w': missing; parameter weight \(6, 8\) is made from it",
            "incomplete, or of another architecture",
        ),
        (
            {"a": zeros(3, 8)},
            MERGED,
            r"tensor 'b': missing; parameter weight \(6, 8\)",
            "incomplete, or of another architecture",
        ),
        (
            {"a": zeros(3, 8)},
            WeightRule(target="weight", sources=("a", "b"), optional=True),
            r"tensor 'b': missing; parameter weight \(6, 8\)",
            "incomplete, or of another architecture",
        ),
        (
            {"w": zeros(8, 6)},
            WHOLE,
            r"tensor 'w': has shape \(8, 6\), but parameter weight takes \(6, 8\)",
            "sizes in the config",
        ),
        ({"w": zeros(48)}, WHOLE, r"has shape \(48,\), but parameter weight takes \(6, 8\)", "sizes in the config"),
        (
            {"a": zeros(3, 8), "b": zeros(3, 7)},
            MERGED,
            r"tensor 'b': has shape \(3, 7\), but parameter weight takes rows of \(6, 8\)",
            "sizes in the config",
        ),
        (
            {"a": zeros(3, 8), "b": zeros(4, 8)},
            MERGED,
            r"tensors of weight: a \(3, 8\) \+ b \(4, 8\) have 7 rows, the parameter \(6, 8\) has 6",
            "sizes in the config",
        ),
        (
            {"w": zeros(6, 8)},
            WeightRule(target="weight", sources=("w",), heads=(2,)),
            r"tensor 'w': its 6 rows of shape \(6, 8\) are not 2 heads of an even number of rows",
            "head count of the config",
        ),
        (
            {"w": zeros(6, 8), "x": zeros(2), "y": zeros(3)},
            WHOLE,
            r"tensor 'x': no parameter of the model takes this tensor of shape \(2,\) \(and 1 more\)",
            "list the tensor under ignore",
        ),
        (
            {},
            WeightRule(target="weight", sources=("w",), optional=True),
            r"tensor 'w': missing, and parameter weight \(6, 8\) is not tied to another",
            "build the model with this parameter tied",
        ),
    ],
)
def test_load_weights_refuses_a_checkpoint_that_does_not_fit(memory_source, tensors, rule, problem, hint):
    """The error says what is wrong and what to do, and the module is untouched."""
    module = build()
    with pytest.raises(MalformedFileError, match=problem) as caught:
        load(module, memory_source(tensors), rule)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
    assert module.weight.device.type == "meta"


def test_load_weights_names_the_folder_of_a_sharded_checkpoint(memory_source):
    """A missing tensor is in no shard, so the message names their folder."""
    files = {"a": "/models/m/model-1.safetensors", "b": "/models/m/model-2.safetensors"}
    source = memory_source({"a": zeros(3, 8), "b": zeros(3, 8)}, files=files)
    with pytest.raises(MalformedFileError, match=r"^/models/m: tensor 'w': missing"):
        load(build(), source, WHOLE)


def test_load_weights_ignores_whole_names_only(memory_source):
    """A pattern that matches a part of a name does not hide the tensor."""
    with pytest.raises(MalformedFileError, match=r"tensor 'w\.extra': no parameter of the model takes this tensor"):
        load(build(), memory_source({"w": zeros(6, 8), "w.extra": zeros(1)}), WHOLE, ignore=(r"w\.ext",))


@pytest.mark.parametrize(
    "rules, problem",
    [
        ((WeightRule(target="kernel", sources=("w",)),), "fills 'kernel', which Linear does not have"),
        ((), r"no rule for 'weight' \(6, 8\)"),
        (
            (WeightRule(target="weight", sources=("w",), heads=(1, 2)),),
            "rule of 'weight' has 1 sources and 2 head counts",
        ),
        ((WeightRule(target="weight", sources=()),), "rule of 'weight' has 0 sources and 0 head counts"),
    ],
)
def test_load_weights_refuses_a_weight_map_that_does_not_fit_the_module(memory_source, rules, problem):
    """These are mistakes in the model's code, whatever the checkpoint."""
    with pytest.raises(ValueError, match=problem):
        load(build(), memory_source({"w": zeros(6, 8)}), *rules)


def test_load_weights_refuses_two_tensors_for_one_tied_parameter(memory_source):
    """A model that was built tied cannot hold the head of a checkpoint that has one."""
    with torch.device("meta"):
        words = Embedding(5, 4)
        model = nn.ModuleDict({"embed": words, "head": LMHead(4, 5, tied_to=words)})
    rules = (
        WeightRule(target="embed.weight", sources=("e",)),
        WeightRule(target="head.weight", sources=("h",), optional=True),
    )
    with pytest.raises(ValueError, match=r"each of embed\.weight, head\.weight, which are one .*: build it untied"):
        load(model, memory_source({"e": zeros(5, 4), "h": zeros(5, 4)}), *rules)


def test_load_weights_refuses_integer_and_scalar_parameters(memory_source):
    """Only floating-point parameters with rows can be streamed by rows."""
    module = nn.Module()
    module.register_buffer("codes", torch.empty(4, dtype=torch.int8, device="meta"))
    with pytest.raises(ValueError, match=r"'codes' must be floating point and have a dimension, got torch.int8\(4,\)"):
        load(module, memory_source({"w": zeros(4)}), WeightRule(target="codes", sources=("w",)))
