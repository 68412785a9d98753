"""The conformance kit on checkpoints that differ in what a cache could get wrong."""

import pytest

from inference_pio.models.llama import PLUGIN
from inference_pio.testing import load_model, rope_variants

CHECKPOINTS = {
    "gqa": {},
    "mqa-biased-tied": {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
    "mha-yarn": {"num_key_value_heads": 4, "rope_parameters": rope_variants(16)["yarn"]},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_conformance(conformance_check, tiny_checkpoint, name, backend):
    """Each capability of the manifest holds."""
    conformance_check(load_model(PLUGIN, tiny_checkpoint("llama", **CHECKPOINTS[name]), backend=backend))


def test_conformance_in_bfloat16(conformance_check, tiny_checkpoint):
    """The promises hold in bfloat16 to its own rounding."""
    conformance_check(load_model(PLUGIN, tiny_checkpoint("llama"), dtype="bfloat16"), tolerance=0.25)


@pytest.mark.gpu
def test_conformance_on_cuda(conformance_check, tiny_checkpoint):
    """The promises hold on the GPU."""
    conformance_check(load_model(PLUGIN, tiny_checkpoint("llama"), device="cuda"), tolerance=1e-3)
