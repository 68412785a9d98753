"""What the plugin promises before any weight is read."""

import pytest

from inference_pio.models.qwen3 import PLUGIN
from inference_pio.testing import CAPABILITY_OF_CHECK, check_plugin


@pytest.fixture
def manifest(tiny_checkpoint):
    """The manifest of a plugin that is registered and reads headers without torch."""
    return check_plugin(PLUGIN, tiny_checkpoint("qwen3"))


def test_manifest_names_the_family(manifest):
    """Its architecture string, in both file formats."""
    assert manifest.architectures == ("Qwen3ForCausalLM",)
    assert dict(manifest.gguf) == {"qwen3": "Qwen3ForCausalLM"}


def test_manifest_claims_what_the_conformance_kit_checks(manifest):
    """Every capability there is, and test_conformance runs all checks."""
    assert manifest.capabilities == set(CAPABILITY_OF_CHECK.values())
