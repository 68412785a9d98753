"""Which model plugins are installed: found by entry point, described by a static manifest, imported when used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_pio.interfaces import (
    API_VERSION,
    MANIFEST_NAME,
    BrokenDependencyError,
    MissingPluginError,
    ModelPlugin,
    PioError,
    PluginManifest,
    RegisteredModel,
    read_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "inference_pio.models"

# Architectures that a published distribution brings, so that a missing one can be named.
KNOWN_DISTRIBUTIONS = {
    "LlamaForCausalLM": "pio-model-llama",
    "Qwen3ForCausalLM": "pio-model-qwen3",
}
KNOWN_GGUF = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """A plugin that is installed and whose manifest is sound; not imported yet.

    Attributes:
        manifest: What it declares.
        version: Version of the distribution that brings it.
        entry_points: One per architecture, by name.
    """

    manifest: PluginManifest
    version: str
    entry_points: dict[str, EntryPoint]

    def load(self, architecture: str) -> ModelPlugin[Any]:
        """Import the plugin that serves ``architecture``.

        Raises:
            BrokenDependencyError: Importing it fails, or what it exports is not a plugin.
        """
        entry_point = self.entry_points[architecture]
        try:
            plugin = entry_point.load()
        except (ImportError, AttributeError) as error:
            raise BrokenDependencyError(
                f"{self.manifest.distribution} {self.version} is installed, but importing {entry_point.value} failed: "
                f"{error}",
                hint=f"reinstall it: pip install --force-reinstall {self.manifest.distribution}",
            ) from error
        if not isinstance(plugin, ModelPlugin):
            raise BrokenDependencyError(
                f"{entry_point.value} of {self.manifest.distribution} {self.version} is not a model plugin: "
                f"{type(plugin).__name__} lacks parse_config, shape, weight_map or build"
            )
        return plugin


class Registry:
    """The installed model plugins, by architecture.

    Args:
        plugins: Plugins with sound manifests.
        problems: Why other plugins could not be registered, by the architecture they claim.
    """

    def __init__(self, plugins: Iterable[InstalledPlugin], problems: dict[str, PioError] | None = None) -> None:
        self.plugins = tuple(plugins)
        self.problems = dict(problems or {})
        self._by_architecture = {name: plugin for plugin in self.plugins for name in plugin.entry_points}

    @classmethod
    def discover(cls) -> Registry:
        """Read entry points and manifests of everything installed. Runs no plugin code."""
        groups: dict[str, list[EntryPoint]] = {}
        for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            groups.setdefault(entry_point.module, []).append(entry_point)
        plugins: list[InstalledPlugin] = []
        problems: dict[str, PioError] = {}
        for module, entry_points in sorted(groups.items()):
            try:
                plugins.append(_describe(module, entry_points))
            except PioError as error:
                problems.update({entry_point.name: error for entry_point in entry_points})
        return cls(plugins, problems)

    @property
    def architectures(self) -> tuple[str, ...]:
        """Architecture strings that are served, sorted."""
        return tuple(sorted(self._by_architecture))

    def by_architecture(self, name: str) -> InstalledPlugin:
        """The plugin that serves architecture ``name``.

        Raises:
            MissingPluginError: None does; the message lists those installed and the distribution that would bring it.
            PioError: The one that claims it has a broken manifest.
        """
        if name in self._by_architecture:
            return self._by_architecture[name]
        if name in self.problems:
            raise self.problems[name]
        distribution = KNOWN_DISTRIBUTIONS.get(name)
        hint = f"pip install {distribution}" if distribution else "no known distribution brings it"
        raise MissingPluginError(
            f"no installed plugin serves architecture {name!r}; installed: {', '.join(self.architectures) or 'none'}",
            hint=hint,
        )

    def by_gguf(self, name: str) -> tuple[InstalledPlugin, str]:
        """The plugin that serves GGUF architecture ``name``, and the architecture string it stands for.

        Raises:
            MissingPluginError: None does.
        """
        for plugin in self.plugins:
            for gguf_name, architecture in plugin.manifest.gguf:
                if gguf_name == name:
                    return plugin, architecture
        if name in KNOWN_GGUF:
            architecture = KNOWN_GGUF[name]
            return self.by_architecture(architecture), architecture
        installed = sorted(gguf_name for plugin in self.plugins for gguf_name, _ in plugin.manifest.gguf)
        raise MissingPluginError(
            f"no installed plugin serves GGUF architecture {name!r}; installed: {', '.join(installed) or 'none'}",
            hint="no known distribution brings it",
        )

    def registered_models(self) -> dict[str, RegisteredModel]:
        """Models that can be asked for by name."""
        return {model.name: model for plugin in self.plugins for model in plugin.manifest.models}


def _describe(module: str, entry_points: list[EntryPoint]) -> InstalledPlugin:
    first = entry_points[0]
    distribution = first.dist
    described = f"{distribution.name} {distribution.version}" if distribution else module
    spec = importlib.util.find_spec(module)  # its parents are namespaces, so no code runs
    if spec is None or spec.origin is None:
        raise BrokenDependencyError(f"{described} names the module {module}, which is not there")
    path = Path(spec.origin).with_name(MANIFEST_NAME)
    if not path.is_file():
        raise BrokenDependencyError(f"{described} has no {MANIFEST_NAME} beside {module}")
    manifest = read_manifest(path)
    if not _compatible(manifest.api):
        raise BrokenDependencyError(
            f"{described} was written for plugin API {manifest.api}, and this core supports {API_VERSION}",
            hint=f"pip install --upgrade {manifest.distribution} pio-core",
        )
    names = {entry_point.name for entry_point in entry_points}
    if names != set(manifest.architectures):
        raise BrokenDependencyError(
            f"{described} registers {sorted(names)}, but its manifest says {sorted(manifest.architectures)}"
        )
    version = distribution.version if distribution else "unknown"
    return InstalledPlugin(manifest, version, {entry_point.name: entry_point for entry_point in entry_points})


def _compatible(api: str) -> bool:
    """Same major, and the current minor or the one before it."""
    major, minor = (int(part) for part in api.split("."))
    current_major, current_minor = (int(part) for part in API_VERSION.split("."))
    return major == current_major and minor in {current_minor, current_minor - 1}
