"""Checkpoints that do not fit their config are refused with the tensor's name, never computed wrongly."""

import json
import shutil

import pytest

from inference_pio.interfaces import ConfigError, MalformedFileError
from inference_pio.models.qwen3 import PLUGIN
from inference_pio.testing import load_model


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A private copy that a test may damage."""
    return shutil.copytree(tiny_checkpoint("qwen3"), tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"head_dim": 64}, MalformedFileError, r"self_attn\.\w+\.weight"),
        ({"num_hidden_layers": 4}, MalformedFileError, r"model\.layers\.3\."),
        ({"num_hidden_layers": 2, "layer_types": None}, MalformedFileError, r"model\.layers\.2\."),
        ({"attention_bias": True}, MalformedFileError, r"self_attn\.\w+\.bias"),
        ({"query_norm": False}, ConfigError, "query_norm"),
    ],
    ids=["head-dim", "too-deep", "too-shallow", "bias", "unknown-key"],
)
def test_config_that_does_not_fit_the_tensors(checkpoint, change, error, message):
    """The first tensor or key at fault is named."""
    path = checkpoint / "config.json"
    values = {**json.loads(path.read_text()), **change}
    if values["layer_types"] is not None:
        values["layer_types"] = ["full_attention"] * values["num_hidden_layers"]
    path.write_text(json.dumps(values))
    with pytest.raises(error, match=message):
        load_model(PLUGIN, checkpoint)
