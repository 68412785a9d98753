"""Which files a folder's own entries may lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.interfaces import MalformedFileError, ModelNotFoundError, PathEscapeError

if TYPE_CHECKING:
    from pathlib import Path


def resolve_member(folder: Path, name: str) -> Path:
    """The real path of ``folder / name``, which must stay within the folder.

    One exception: in a Hugging Face cache, ``models--x--y/snapshots/<revision>/`` holds links into
    ``models--x--y/blobs/``, and these are followed. Any other link that leads out is refused.

    Args:
        folder: The folder that the user named.
        name: An entry of it; no path.

    Raises:
        ModelNotFoundError: No such file, or a link to nothing.
        PathEscapeError: A link that leads out of the folder.
        MalformedFileError: A loop of links.
    """
    assert "/" not in name  # it comes from a listing, or was held against a pattern
    try:
        real = (folder / name).resolve(strict=True)
        root = folder.resolve(strict=True)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{folder / name}: no such file", hint="the download may be incomplete") from error
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise MalformedFileError(folder, name, f"cannot be resolved: {error}") from error
    if real.parent == root or _is_cached_blob(root, real):
        return real
    raise PathEscapeError(
        folder,
        name,
        f"is a link out of the folder, to {real}",
        hint="name that file itself, or put a copy in the folder",
    )


def _is_cached_blob(root: Path, real: Path) -> bool:
    snapshots = next((parent for parent in root.parents if parent.name == "snapshots"), None)
    return snapshots is not None and real.parent == snapshots.parent / "blobs"
