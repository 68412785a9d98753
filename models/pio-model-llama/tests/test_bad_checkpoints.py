"""Checkpoints that do not fit their config are refused with the tensor's name, never computed wrongly."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from inference_pio.attention import get_backend
from inference_pio.config import gguf_to_hf
from inference_pio.interfaces import ConfigError, MalformedFileError
from inference_pio.layers import DenseLinear, load_weights
from inference_pio.models.llama import PLUGIN
from inference_pio.testing import check_parity, load_model, rope_variants, write_gguf
from inference_pio.weights import open_weights


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A private copy that a test may damage."""
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def test_config_wider_than_the_tensors(checkpoint):
    """A size that the tensors do not have names the first one that differs."""
    change_config(checkpoint, intermediate_size=128)
    with pytest.raises(MalformedFileError, match=r"mlp\.(gate|up|down)_proj\.weight"):
        load_model(PLUGIN, checkpoint)


def test_config_with_more_layers_than_the_file(checkpoint):
    """A layer that is not there is named."""
    change_config(checkpoint, num_hidden_layers=4)
    with pytest.raises(MalformedFileError, match=r"model\.layers\.3\."):
        load_model(PLUGIN, checkpoint)


def test_config_with_fewer_layers_than_the_file(checkpoint):
    """A layer that nothing takes is not dropped silently."""
    change_config(checkpoint, num_hidden_layers=2)
    with pytest.raises(MalformedFileError, match=r"model\.layers\.2\."):
        load_model(PLUGIN, checkpoint)


def test_missing_tensor(checkpoint):
    """A tensor that the model needs is named."""
    change_tensors(checkpoint, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(MalformedFileError, match=r"model\.norm\.weight"):
        load_model(PLUGIN, checkpoint)


def test_biases_that_the_config_denies(checkpoint):
    """A bias that would be left out of the computation is refused."""
    name = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(64)}))
    with pytest.raises(MalformedFileError, match=r"q_proj\.bias"):
        load_model(PLUGIN, checkpoint)


def test_rotary_buffers_of_old_checkpoints_are_passed_over(checkpoint, tiny_checkpoint):
    """Old releases stored the rotary frequencies, which follow from the config."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(8)}))
    check_parity(PLUGIN, checkpoint, reference=tiny_checkpoint("llama"))


def test_a_stored_head_wins_over_the_tying_flag(tiny_checkpoint, tmp_path):
    """The file decides: a head that is there is used, whatever the config says."""
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "flagged")
    change_config(folder, tie_word_embeddings=True)
    check_parity(PLUGIN, folder, reference=tiny_checkpoint("llama"))


def test_unknown_config_key(checkpoint):
    """A key that might change the computation stops the loading."""
    change_config(checkpoint, attention_sinks=4)
    with pytest.raises(ConfigError, match="attention_sinks"):
        load_model(PLUGIN, checkpoint)


def test_gguf_rotary_factors_that_the_config_lacks(tiny_checkpoint, tmp_path):
    """A file with rotary divisors is never computed without them."""
    folder = tiny_checkpoint("llama", rope_parameters=rope_variants(16)["llama3"])
    source = open_weights(write_gguf(folder, tmp_path / "tiny.gguf"))
    config = PLUGIN.parse_config(gguf_to_hf(source.metadata, architecture="LlamaForCausalLM"))
    with torch.device("meta"):
        module = PLUGIN.build(config, attention=get_backend("sdpa"), linear=DenseLinear(), tied_head=False)
    weight_map = PLUGIN.weight_map(config, "gguf")
    with pytest.raises(MalformedFileError, match=r"rope_freqs\.weight"):
        load_weights(module, source, weight_map, dtype=torch.float32, device=torch.device("cpu"))
