"""What a plugin promises before any weight is read is held to what is installed."""

import dataclasses
from importlib.metadata import EntryPoint

import pytest

from inference_pio.core import Registry
from inference_pio.interfaces import MissingPluginError
from inference_pio.models.llama import PLUGIN
from inference_pio.testing import ParityError, _plugin, check_plugin


@pytest.fixture
def declare(monkeypatch):
    """Give the manifest beside the plugin other values."""

    def change(**values):
        manifest = dataclasses.replace(_plugin.manifest_of(PLUGIN), **values)
        monkeypatch.setattr(_plugin, "manifest_of", lambda _: manifest)

    return change


@pytest.fixture
def install(monkeypatch):
    """Let the entry point of the plugin's architecture lead elsewhere."""

    def change(value):
        name = "LlamaForCausalLM"
        installed = Registry.discover().by_architecture(name)
        point = EntryPoint(name, value, "inference_pio.models")
        other = Registry([dataclasses.replace(installed, entry_points={name: point})])
        monkeypatch.setattr(Registry, "discover", lambda: other)

    return change


def test_a_sound_plugin(checkpoint):
    """Its manifest comes back."""
    manifest = check_plugin(PLUGIN, checkpoint)
    assert (manifest.name, manifest.distribution) == ("llama", "pio-model-llama")


def test_an_architecture_that_is_not_registered(checkpoint, declare):
    """The manifest names it, and no entry point does."""
    declare(architectures=("LlamaForCausalLM", "AlpacaForCausalLM"))
    with pytest.raises(MissingPluginError, match="no installed plugin serves architecture 'AlpacaForCausalLM'"):
        check_plugin(PLUGIN, checkpoint)


def test_an_entry_point_that_leads_elsewhere(checkpoint, install, tmp_path, monkeypatch):
    """To a plugin of the same kind, but another."""
    (tmp_path / "copied_plugin.py").write_text(
        "from inference_pio.models.llama import PLUGIN\nPLUGIN = type(PLUGIN)()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install("copied_plugin:PLUGIN")
    with pytest.raises(ParityError, match="'LlamaForCausalLM' leads to copied_plugin:PLUGIN, which is not the plugin"):
        check_plugin(PLUGIN, checkpoint)


def test_a_plugin_that_imports_torch(checkpoint, install, tmp_path, monkeypatch):
    """Where whoever only lists models imports it too."""
    (tmp_path / "heavy_plugin.py").write_text("import torch\nfrom inference_pio.models.llama import PLUGIN\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    install("heavy_plugin:PLUGIN")
    with pytest.raises(ParityError, match="without torch: torch was imported"):
        check_plugin(PLUGIN, checkpoint)


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        ({"generate", "native", "telepathy"}, "the manifest declares telepathy, which no check proves"),
        ({"generate"}, r"declares 'native' if and only if the plugin has lower\(\)"),
    ],
)
def test_capabilities_that_nothing_proves(checkpoint, declare, capabilities, message):
    """Those without a check, and a lowering that nobody is told of."""
    declare(capabilities=frozenset(capabilities))
    with pytest.raises(ParityError, match=message):
        check_plugin(PLUGIN, checkpoint)
