"""The models on this machine that have a name."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be asked for by name.

    Attributes:
        name: What to call it.
        bytes: Size of its files.
        source: The hub, or the distribution, that it came from.
        revision: Commit or version.
        path: File or folder.
    """

    name: str
    bytes: int
    source: str
    revision: str
    path: Path


def known_models(cache: Path) -> list[KnownModel]:
    """Models whose weights ship in an installed distribution, then models fetched into ``cache``, each by name."""
    from inference_pio.core import Registry, hub

    registered = Registry.discover().registered_models()
    shipped = [_shipped(name, model.distribution, model.file) for name, model in sorted(registered.items())]
    fetched = [
        KnownModel(local.name, local.bytes, local.source, local.revision, local.path)
        for local in hub.list_models(cache)
    ]
    return [*(model for model in shipped if model is not None), *fetched]


def _shipped(name: str, distribution_name: str, file: str) -> KnownModel | None:
    """The model in the distribution, or None if that is not installed."""
    try:
        distribution = importlib.metadata.distribution(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        return None
    return KnownModel(name, path.stat().st_size, distribution_name, distribution.version, path)
