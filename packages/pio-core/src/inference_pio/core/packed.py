"""Copies of weights, packed for the native executor and kept on disk, so that the next start need not pack them.

Nothing here is precious: what is removed is packed again when the model is next loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.config import Settings
from inference_pio.config import cache_dir as default_cache_dir
from inference_pio.interfaces import ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from inference_pio.kernels import PackedEntry, PackedStore


def packed_folder(cache_dir: Path) -> Path:
    """The folder of packed copies in the folder for fetched models; it need not exist yet."""
    return cache_dir / "packed"


def list_packed(cache_dir: Path | None = None) -> list[PackedEntry]:
    """All packed copies, the one used last first.

    Args:
        cache_dir: The folder for fetched models; None for the default place.
    """
    return _store(cache_dir).list()


def remove_packed(name: str, cache_dir: Path | None = None) -> list[PackedEntry]:
    """Remove the packed copies of a model; processes that use them are not disturbed.

    Args:
        name: The label of the copies, or the beginning of the key of one.
        cache_dir: As in :func:`list_packed`.

    Returns:
        What was removed.

    Raises:
        ModelNotFoundError: No copy is called that, or several keys begin so.
    """
    store = _store(cache_dir)
    entries = store.list()
    chosen = [entry for entry in entries if name and entry.label == name]
    if not chosen:
        chosen = [entry for entry in entries if name and entry.key.startswith(name)]
        if len(chosen) != 1:
            problem = f"{len(chosen)} packed copies have keys that begin with" if chosen else "no packed copy is called"
            known = ", ".join(dict.fromkeys(entry.label or entry.key[:12] for entry in entries)) or "none"
            raise ModelNotFoundError(f"{problem} {name!r}; there are: {known}", hint="pio cache list")
    return [entry for entry in chosen if store.remove(entry.key)]


def clear_packed(cache_dir: Path | None = None) -> int:
    """Remove all packed copies; the bytes that this gives back.

    Args:
        cache_dir: As in :func:`list_packed`.
    """
    return _store(cache_dir).clear()


def _store(cache_dir: Path | None) -> PackedStore:
    from inference_pio.kernels import PackedStore

    return PackedStore(packed_folder(default_cache_dir(Settings()) if cache_dir is None else cache_dir))
