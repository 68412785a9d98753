"""What installed distributions bring: model families by their manifests, commands by their entry points."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """A model family.

    Attributes:
        name: Short name.
        source: Distribution and version.
        architectures: Architecture strings that it serves.
        models: Models that can be asked for by name.
    """

    name: str
    source: str
    architectures: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plugins:
    """All of it.

    Attributes:
        families: Model families by name.
        commands: Commands of other distributions, each with its distribution and version.
        problems: What is installed but cannot be used, and why.
    """

    families: tuple[Family, ...]
    commands: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    def as_object(self) -> dict[str, object]:
        """For JSON."""
        return {
            "models": [asdict(family) for family in self.families],
            "commands": [{"name": name, "source": source} for name, source in self.commands],
            "problems": list(self.problems),
        }


def installed_plugins() -> Plugins:
    """Read entry points and manifests; import no plugin."""
    from inference_pio.cli._commands import other_commands
    from inference_pio.core import Registry

    registry = Registry.discover()
    families = [
        Family(
            plugin.manifest.name,
            f"{plugin.manifest.distribution} {plugin.version}",
            plugin.manifest.architectures,
            tuple(model.name for model in plugin.manifest.models),
        )
        for plugin in registry.plugins
    ]
    commands = [
        (name, f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else entry_point.value)
        for name, entry_point in other_commands().items()
    ]
    problems = tuple(dict.fromkeys(str(problem) for problem in registry.problems.values()))
    return Plugins(tuple(sorted(families, key=lambda family: family.name)), tuple(sorted(commands)), problems)
