"""The JSON files of a model folder."""

from __future__ import annotations

import re
from pathlib import Path

from inference_pio.config._files import read_json
from inference_pio.config._text import shown_key
from inference_pio.interfaces import MalformedFileError, ModelNotFoundError, RemoteCodeRefusedError

MAX_CONFIG_BYTES = 1 << 20

_CODE_KEY = re.compile(r"auto_map|custom_pipelines|_attn_implementation.*|.*_kernel.*", re.DOTALL)


def read_model_config(folder: Path | str, *, ignore_code: bool = False) -> dict[str, object]:
    """The ``config.json`` of the model in ``folder``.

    Nothing in a model folder is ever run. A config that asks for it (``auto_map``, ``custom_pipelines``, an attention
    implementation or kernels by name, at any depth) may not mean what its other keys say without that code, so it is
    refused.

    Args:
        folder: The model's folder.
        ignore_code: Leave such keys out instead; the model is then computed by an installed plugin alone.

    Raises:
        ModelNotFoundError: The folder has no ``config.json``.
        MalformedFileError: Not a JSON object, or one with traps (see :func:`read_json`).
        LimitExceededError: More than 1 MiB or 64 levels.
        RemoteCodeRefusedError: The config asks for code.
    """
    path = Path(folder) / "config.json"
    try:
        return _read(path, ignore_code=ignore_code)
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"no config.json in {folder}", hint="a model folder holds config.json beside its weights"
        ) from None


def read_generation_config(folder: Path | str, *, ignore_code: bool = False) -> dict[str, object]:
    """The ``generation_config.json`` of the model in ``folder``, under the same rules; empty if there is none.

    Raises:
        MalformedFileError: Not a JSON object, or one with traps.
        LimitExceededError: More than 1 MiB or 64 levels.
        RemoteCodeRefusedError: The config asks for code.
    """
    try:
        return _read(Path(folder) / "generation_config.json", ignore_code=ignore_code)
    except FileNotFoundError:
        return {}


def _read(path: Path, *, ignore_code: bool) -> dict[str, object]:
    raw = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(raw, dict):
        raise MalformedFileError(path, "content", f"must be an object, got {type(raw).__name__}")
    if ignore_code:
        return {key: _without_code(value) for key, value in raw.items() if not _asks_for_code(key, value)}
    if (key := _code_key(raw)) is not None:
        raise RemoteCodeRefusedError(
            f"{path}: {shown_key(key)} asks to run code of the model's own, which is never done",
            hint="remove it, or set PIO_IGNORE_UNKNOWN_KEYS=1, to compute by the installed plugin alone",
        )
    return raw


def _code_key(node: object) -> str | None:
    """The first key anywhere in ``node`` that asks for code."""
    if isinstance(node, dict):
        for key, value in node.items():
            if _asks_for_code(key, value):
                return str(key)
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return next((key for child in children if (key := _code_key(child)) is not None), None)


def _without_code(node: object) -> object:
    if isinstance(node, dict):
        return {key: _without_code(value) for key, value in node.items() if not _asks_for_code(key, value)}
    if isinstance(node, list):
        return [_without_code(item) for item in node]
    return node


def _asks_for_code(key: str, value: object) -> bool:
    """Whether the key can name code and the value does: numbers are sizes (``conv_kernel_size``), null is nothing."""
    if not _CODE_KEY.fullmatch(key):
        return False
    if key.startswith("_attn_implementation"):
        return value is not None and not isinstance(value, bool)
    return not _only_numbers(value)


def _only_numbers(value: object) -> bool:
    if isinstance(value, list):
        return all(_only_numbers(item) for item in value)
    return value is None or value is False or (isinstance(value, int | float) and not isinstance(value, bool))
