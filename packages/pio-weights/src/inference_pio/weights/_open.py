"""From a path to a weight source: which file is meant, and in which format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import MalformedFileError, ModelNotFoundError, PioError, UnsupportedError
from inference_pio.weights._gguf import PART_NAME, GGUFSource
from inference_pio.weights._limits import DEFAULT_LIMITS
from inference_pio.weights._paths import resolve_member
from inference_pio.weights._safetensors import INDEX_SUFFIX, SafetensorsSource

if TYPE_CHECKING:
    from inference_pio.interfaces import WeightSource
    from inference_pio.weights._limits import Limits

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CONVERT = "pickles can run code, so they are never opened: convert them to safetensors, or download that variant"


def open_weights(path: Path | str, *, limits: Limits = DEFAULT_LIMITS) -> WeightSource:
    """Open a checkpoint.

    Args:
        path: A ``.gguf`` file, a ``.safetensors`` file, a ``.safetensors.index.json``, or a folder. In a folder the
            first of these is taken: ``model.safetensors.index.json``, ``model.safetensors``, the only ``.safetensors``
            file, the only ``.gguf`` file (or the parts of one split file). Pickles beside them are never touched.
        limits: What a header may claim.

    Raises:
        ModelNotFoundError: Nothing there, or no weights in the folder.
        UnsupportedError: Another format, such as a pickle; or a version or dtype that is not read.
        MalformedFileError: A rule of the format is broken, or the folder leaves open which file is meant.
        LimitExceededError: More than ``limits`` allows.
        PathEscapeError: An index or a link leads out of the folder.
        PioError: The path may not be read.
    """
    path = Path(path)
    try:
        name = _weights_in(path) if path.is_dir() else None
    except OSError as error:
        raise PioError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error
    if name is not None:
        resolve_member(path, name)
        path = path / name
    suffix = path.suffix.lower()
    if suffix == ".safetensors" or path.name.endswith(INDEX_SUFFIX):
        return SafetensorsSource(path, limits=limits)
    if suffix == ".gguf":
        return GGUFSource(path, limits=limits)
    if not os.path.lexists(path):
        raise ModelNotFoundError(f"{path}: no such file", hint="check the path")
    if suffix in _PICKLES:
        raise UnsupportedError(f"{path}: a PyTorch pickle", hint=_CONVERT)
    raise UnsupportedError(
        f"{path}: not a weight file by its suffix", hint="read are .safetensors, .safetensors.index.json and .gguf"
    )


def _weights_in(folder: Path) -> str:
    """Name of the file in ``folder`` that is meant."""
    names = sorted(entry.name for entry in os.scandir(folder))
    for name in ("model" + INDEX_SUFFIX, "model.safetensors"):
        if name in names:
            return name
    for suffix in (".safetensors", ".gguf"):
        found = [name for name in names if name.lower().endswith(suffix)]
        if len(found) == 1 or (found and _is_one_split_file(found)):
            return found[0]
        if found:
            problem = f"{len(found)} {suffix} files and no index: {', '.join(found[:4])}{', ...' if found[4:] else ''}"
            raise MalformedFileError(folder, "weights", problem, hint="name one of the files")
    pickles = [name for name in names if name.lower().endswith(_PICKLES)]
    if pickles:
        raise UnsupportedError(f"{folder}: the only weights are pickles ({pickles[0]})", hint=_CONVERT)
    raise ModelNotFoundError(f"{folder}: no weights in this folder", hint="expected a .safetensors or a .gguf file")


def _is_one_split_file(names: list[str]) -> bool:
    parts = [PART_NAME.fullmatch(name) for name in names]
    return len({(part["stem"], part["count"]) if part else None for part in parts}) == 1 and None not in parts
