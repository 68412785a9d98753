"""The conformance kit on checkpoints that differ in what a cache could get wrong."""

import pytest

from inference_pio.models.qwen3 import PLUGIN
from inference_pio.testing import load_model, rope_variants

CHECKPOINTS = {
    "gqa": {},
    "mqa-biased-tied": {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
    "yarn": {"rope_parameters": rope_variants(32)["yarn"]},
    "sliding": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_conformance(conformance_check, tiny_checkpoint, name, backend):
    """Each capability of the manifest holds."""
    conformance_check(load_model(PLUGIN, tiny_checkpoint("qwen3", **CHECKPOINTS[name]), backend=backend))


@pytest.mark.gpu
def test_conformance_on_cuda(conformance_check, tiny_checkpoint):
    """The promises hold on the GPU."""
    conformance_check(load_model(PLUGIN, tiny_checkpoint("qwen3"), device="cuda"), tolerance=1e-3)
