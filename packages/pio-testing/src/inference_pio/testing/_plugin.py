"""What a plugin promises before any weight is read: its manifest, its entry points, and to need no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from inference_pio.config import read_model_config
from inference_pio.core import Registry
from inference_pio.interfaces import LowerableModel
from inference_pio.testing._checks import CAPABILITY_OF_CHECK
from inference_pio.testing._compare import ParityError
from inference_pio.testing._load import manifest_of

if TYPE_CHECKING:
    from pathlib import Path

    from inference_pio.interfaces import ModelPlugin, PluginManifest

_WITHOUT_TORCH = """
import json, sys
from importlib.metadata import EntryPoint
plugin = EntryPoint("plugin", sys.argv[1], "inference_pio.models").load()
config = plugin.parse_config(json.loads(sys.argv[2]))
for tied_head in (False, True):
    plugin.shape(config, tied_head=tied_head)
for layout in sys.argv[3:]:
    plugin.weight_map(config, layout)
if "torch" in sys.modules:
    sys.exit("torch was imported")
"""


def check_plugin(plugin: ModelPlugin[Any], path: Path) -> PluginManifest:
    """Hold a plugin to what everyone relies on who does not compute with its models: the registry, planners, listings.

    The entry points of its architectures lead to ``plugin``, and its manifest names the same ones. Each capability that
    it declares has a check in this kit, ``native`` if and only if it has a lowering. In a process of its own config,
    shape and weight maps come without torch.

    Args:
        plugin: The family's plugin.
        path: A folder with ``config.json``.

    Returns:
        Its manifest.

    Raises:
        ParityError: One of these is not so.
        PioError: The registry refuses the plugin, or does not know it.
        ValueError: There is no manifest beside it.
    """
    manifest = manifest_of(plugin)
    registry = Registry.discover()
    for architecture in manifest.architectures:
        installed = registry.by_architecture(architecture)
        if installed.load(architecture) is not plugin:
            value = installed.entry_points[architecture].value
            raise ParityError(f"the entry point {architecture!r} leads to {value}, which is not the plugin")
        _check_without_torch(installed.entry_points[architecture].value, path, manifest)
    if unknown := sorted(manifest.capabilities.difference(CAPABILITY_OF_CHECK.values())):
        raise ParityError(f"the manifest declares {', '.join(unknown)}, which no check proves")
    if ("native" in manifest.capabilities) != isinstance(plugin, LowerableModel):
        raise ParityError("the manifest declares 'native' if and only if the plugin has lower()")
    return manifest


def _check_without_torch(entry_point: str, path: Path, manifest: PluginManifest) -> None:
    layouts = ("safetensors", "gguf") if manifest.gguf else ("safetensors",)
    done = subprocess.run(  # noqa: S603 - this very interpreter, with what the plugin under test says
        [sys.executable, "-c", _WITHOUT_TORCH, entry_point, json.dumps(read_model_config(path)), *layouts],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ParityError(f"config, shape and weight maps without torch: {done.stderr.strip()}")
