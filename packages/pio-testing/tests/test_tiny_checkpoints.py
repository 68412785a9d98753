"""Tiny checkpoints: reproducible, random in every parameter, in the files that hubs use."""

import json

import pytest
import safetensors.torch
import torch
import transformers

from inference_pio.testing import load_reference, rope_variants, tiny_checkpoint, trace_reference

TOKENS = [(7 * index) % 131 for index in range(96)]


def tensors_of(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors.update(safetensors.torch.load_file(path))
    return tensors


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_same_seed_same_values(tmp_path, family):
    """A seed names one checkpoint; another seed names another in every tensor."""
    first, again, other = (
        tensors_of(tiny_checkpoint(family, tmp_path / str(index), seed=seed)) for index, seed in enumerate((3, 3, 4))
    )
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_no_vector_is_left_at_its_initial_value(tmp_path, family):
    """A norm of ones or a bias of zeros would hide a model that forgets it."""
    tensors = tensors_of(tiny_checkpoint(family, tmp_path, attention_bias=True))
    vectors = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 1}
    assert sum(name.endswith("bias") for name in vectors) == 12
    assert all(vector.std() > 0.1 for vector in vectors.values())
    norms = torch.cat([vector for name, vector in vectors.items() if "norm" in name])
    assert 0.9 < norms.mean() < 1.1


def test_logits_are_of_order_one(tmp_path):
    """Differences are only telling beside logits that differ."""
    trace = trace_reference(load_reference(tiny_checkpoint("llama", tmp_path)), TOKENS)
    assert 0.5 < trace.logits.std() < 2.0
    assert len(trace.layers) == 3


def test_dtype_and_overrides_are_stored(tmp_path, config_of):
    """Values in transformers' spelling replace the tiny sizes."""
    folder = tiny_checkpoint("llama", tmp_path / "new" / "folder", dtype="bfloat16", num_hidden_layers=1)
    assert {tensor.dtype for tensor in tensors_of(folder).values()} == {torch.bfloat16}
    assert config_of(folder)["num_hidden_layers"] == 1


def test_sharded_checkpoint_has_an_index(tmp_path):
    """Several files, and an index that names each tensor's file."""
    folder = tiny_checkpoint("llama", tmp_path, sharded=True)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 3
    assert set(index["weight_map"]) == set(tensors_of(folder))


def test_tied_checkpoint_stores_no_head(tmp_path):
    """A tied head is not written twice."""
    assert "lm_head.weight" not in tensors_of(tiny_checkpoint("llama", tmp_path, tie_word_embeddings=True))


@pytest.mark.parametrize("name", [name for name in rope_variants(16) if name != "default"])
def test_rope_variants_matter_within_the_context(tmp_path, name):
    """Each rule changes the logits, so that a model without it cannot pass."""
    context = 32 if name == "dynamic" else 256
    folders = [
        tiny_checkpoint(
            "llama", tmp_path / kind, max_position_embeddings=context, rope_parameters=rope_variants(16)[kind]
        )
        for kind in ("default", name)
    ]
    plain, scaled = (trace_reference(load_reference(folder), TOKENS).logits for folder in folders)
    assert (plain - scaled).abs().max() > 0.05


def test_unknown_family_is_refused(tmp_path):
    """transformers names the families it knows."""
    with pytest.raises(ValueError, match="alpaca"):
        tiny_checkpoint("alpaca", tmp_path)


def test_progress_bars_are_given_back(tmp_path):
    """Writing quietly does not change what the caller sees later."""
    logging = transformers.utils.logging
    assert logging.is_progress_bar_enabled()
    tiny_checkpoint("llama", tmp_path)
    assert logging.is_progress_bar_enabled()
