"""What the plugin promises before any weight is read."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import inference_pio.models.qwen3
from inference_pio.interfaces import MANIFEST_NAME, ModelPlugin, read_manifest
from inference_pio.models.qwen3 import PLUGIN
from inference_pio.testing import CAPABILITY_OF_CHECK

FOLDER = Path(inference_pio.models.qwen3.__file__).parent

WITHOUT_TORCH = """
import sys
from inference_pio.models.qwen3 import PLUGIN
raw = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=4)
config = PLUGIN.parse_config(raw)
PLUGIN.shape(config, tied_head=True)
PLUGIN.weight_map(config, "gguf")
assert "torch" not in sys.modules, "torch was imported"
"""


def test_everything_but_build_runs_without_torch():
    """The planner and ``pio show`` read config, shape and weight map without paying for torch."""
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)


def test_plugin_satisfies_the_contract():
    """The object behind the entry point is a model plugin."""
    assert isinstance(PLUGIN, ModelPlugin)


def test_entry_points_and_manifest_name_the_same_architectures():
    """What the registry reads without import agrees with what it imports later."""
    manifest = read_manifest(FOLDER / MANIFEST_NAME)
    own = [
        point for point in entry_points(group="inference_pio.models") if point.module == "inference_pio.models.qwen3"
    ]
    assert {point.name for point in own} == set(manifest.architectures) == {"Qwen3ForCausalLM"}
    assert all(point.load() is PLUGIN for point in own)
    assert dict(manifest.gguf) == {"qwen3": "Qwen3ForCausalLM"}


def test_manifest_claims_what_the_conformance_kit_checks():
    """Every claimed capability has a check, and test_conformance runs them all."""
    manifest = read_manifest(FOLDER / MANIFEST_NAME)
    assert manifest.capabilities == set(CAPABILITY_OF_CHECK.values())
