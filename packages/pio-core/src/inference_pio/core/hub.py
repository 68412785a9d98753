"""Models of a Hugging Face hub: fetched whole or not at all, listed, found and removed.

``<cache>/models/<owner>--<name>/`` holds one finished model, with ``pio-model.json`` beside its files. It is built
under a hidden name and renamed when every file is there and its checksum is right, so nobody ever sees half a model.
Only weights in formats that hold no code, and the config, tokenizer and licence files beside them, are fetched;
everything about a repository, its listing included, is hostile input.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.config import Settings, read_json
from inference_pio.config import cache_dir as default_cache_dir
from inference_pio.core._hub_client import HubClient, hub_errors
from inference_pio.core._hub_files import choose_files
from inference_pio.interfaces import ConfigError, DoesNotFitError, MalformedFileError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from inference_pio.core._hub_files import RemoteFile

__all__ = ["RECORD_NAME", "LocalModel", "find", "list_models", "pull", "remove"]

RECORD_NAME = "pio-model.json"
"""The file that says what a finished folder holds; written last."""

_MODEL_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<tag>[A-Za-z0-9][\w.-]*))?", re.ASCII)
_MAX_RECORD_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A fetched model.

    Attributes:
        name: Hub id, ``owner/name`` or ``owner/name:TAG``.
        path: The folder with its files.
        bytes: Their size.
        revision: The commit they came from.
        source: Address of the hub they came from.
    """

    name: str
    path: Path
    bytes: int
    revision: str
    source: str


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    endpoint: str | None = None,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LocalModel:
    """Fetch a model, or return it if the cache already has the wanted commit of it.

    Safetensors weights are preferred. Of a repository of GGUF files one is taken: the one that ``:TAG`` selects (such
    as ``owner/name:Q8_0``, or a file name), else the only one, else the Q4_K_M one. Files that were complete when an
    earlier pull was interrupted are not fetched again.

    The user's hub token is sent to the hub of the user's own environment (``HF_ENDPOINT``, else the public one), never
    to another ``endpoint``: a project's settings file may name one.

    Args:
        repo_id: ``owner/name`` or ``owner/name:TAG``.
        revision: Branch, tag or commit; None for the default branch.
        cache_dir: Root of the cache; None for the default place.
        endpoint: Address of the hub; None for the environment's.
        offline: Do not use the network.
        progress: Called with bytes fetched and bytes in all.

    Raises:
        ModelNotFoundError: No such model or revision, or ``offline`` and it is not here.
        HubError: The hub cannot be reached, refuses, or sends something else than it announced.
        UnsupportedError: The repository has no weights in a format that is read, or several and no tag chose one.
        DoesNotFitError: The disk has no room.
        PathEscapeError: The listing names a file outside the repository.
        ConfigError: The cache cannot be written.
    """
    repo, tag = _parse_id(repo_id)
    root = _models_folder(cache_dir)
    local = find(repo_id, root.parent)
    if local is not None and (offline or revision == local.revision):
        return local
    if offline:
        raise ModelNotFoundError(f"{repo_id!r} is not on this machine", hint=f"fetch it: pio pull {repo_id}")
    client = HubClient(repo, endpoint)
    with hub_errors(repo, revision, client.endpoint):
        commit, listing = client.list_files(revision)
        if local is not None and local.revision == commit:
            return local
        with _locked(root, repo_id):
            local = find(repo_id, root.parent)  # another process may have been faster
            if local is not None and local.revision == commit:
                return local
            staging = root / ".partial" / _folder_name(repo_id) / commit
            staging.mkdir(parents=True, exist_ok=True)
            files = choose_files(repo_id, tag, listing, lambda file: client.fetch_index(commit, file, staging))
            _check_room(repo_id, files, staging)
            client.fetch(commit, files, staging, progress)
            sizes = {file.name: (staging / file.name).stat().st_size for file in files}
            record = {"schema": 1, "name": repo_id, "revision": commit, "source": client.endpoint, "files": sizes}
            return _publish(staging, root, record)


def list_models(cache_dir: Path | str | None = None) -> list[LocalModel]:
    """The fetched models, by name.

    Raises:
        MalformedFileError: A folder's record is not what :func:`pull` wrote.
    """
    root = _models_folder(cache_dir)
    if not root.is_dir():
        return []
    folders = (path for path in root.iterdir() if not path.name.startswith(".") and (path / RECORD_NAME).is_file())
    return sorted((_read_record(folder) for folder in folders), key=lambda model: model.name)


def find(name: str, cache_dir: Path | str | None = None) -> LocalModel | None:
    """The fetched model ``name``, or None. Needs no network.

    Raises:
        MalformedFileError: Its record is not what :func:`pull` wrote.
    """
    if not _MODEL_ID.fullmatch(name):
        return None
    folder = _models_folder(cache_dir) / _folder_name(name)
    return _read_record(folder) if (folder / RECORD_NAME).is_file() else None


def remove(name: str, cache_dir: Path | str | None = None) -> LocalModel:
    """Delete a fetched model; it vanishes at once, not file by file.

    Returns:
        What it was.

    Raises:
        ModelNotFoundError: There is none of that name.
        ConfigError: The cache cannot be written.
    """
    root = _models_folder(cache_dir)
    local = find(name, cache_dir)
    if local is None:
        names = [model.name for model in list_models(cache_dir)]
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        known = f"fetched models: {', '.join(names)}" if names else "nothing has been fetched yet"
        raise ModelNotFoundError(
            f"no fetched model {name!r}", hint=f"did you mean {nearest[0]!r}?" if nearest else known
        )
    try:
        with _locked(root, name):
            _discard(local.path, root)
    except OSError as error:
        raise ConfigError(f"cannot remove {local.path}: {error.strerror}") from error
    return local


def _models_folder(cache_dir: Path | str | None) -> Path:
    return (default_cache_dir(Settings()) if cache_dir is None else Path(cache_dir)) / "models"


def _folder_name(model_id: str) -> str:
    """One folder name per model id: a hub name has no ``--`` and no ``@``."""
    return model_id.replace("/", "--").replace(":", "@")


def _parse_id(model_id: str) -> tuple[str, str | None]:
    match = _MODEL_ID.fullmatch(model_id)
    if match is None or "--" in model_id or ".." in model_id or len(model_id) > 200:
        raise ModelNotFoundError(
            f"{model_id[:200]!r} is not a hub id",
            hint="a hub id is owner/name, or owner/name:TAG for one GGUF file of many",
        )
    return match["repo"], match["tag"]


def _check_room(model_id: str, files: Sequence[RemoteFile], staging: Path) -> None:
    present = sum(path.stat().st_size for file in files if (path := staging / file.name).is_file())
    wanted, free = sum(file.bytes for file in files) - present, shutil.disk_usage(staging).free
    if wanted > free:
        raise DoesNotFitError(
            f"{model_id} needs {wanted / 2**30:.2f} GiB on disk, and {free / 2**30:.2f} GiB are free at {staging}",
            hint="free some space (pio rm), or set PIO_CACHE_DIR to a larger disk",
        )


def _publish(staging: Path, root: Path, record: dict[str, object]) -> LocalModel:
    """Turn a complete ``staging`` into the model's folder, in place of what was there."""
    if (bookkeeping := staging / ".cache").exists():  # huggingface_hub's own
        shutil.rmtree(bookkeeping)
    kept = {*_file_sizes(record), RECORD_NAME}
    for stray in staging.iterdir():
        if stray.name not in kept:
            stray.unlink()
    with (staging / RECORD_NAME).open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    folder = root / staging.parent.name
    if folder.exists():
        _discard(folder, root)
    staging.replace(folder)
    shutil.rmtree(staging.parent)  # what interrupted pulls of other commits left
    return _read_record(folder)


def _discard(folder: Path, root: Path) -> None:
    """Make ``folder`` vanish at once, then delete it, and what an interrupted call left."""
    trash = root / ".trash"
    with _locked(root, "trash"):
        trash.mkdir(exist_ok=True)
        folder.replace(trash / uuid.uuid4().hex)
        shutil.rmtree(trash)


def _read_record(folder: Path) -> LocalModel:
    path = folder / RECORD_NAME
    record = read_json(path, max_bytes=_MAX_RECORD_BYTES)
    hint = f"remove the folder {folder} and fetch the model again"
    if not isinstance(record, dict) or record.get("schema") != 1:
        raise MalformedFileError(path, "schema", "is no record of a fetched model", hint=hint)
    for key in ("name", "revision", "source"):
        if not isinstance(record.get(key), str):
            raise MalformedFileError(path, key, f"must be a string, got {record.get(key)!r}", hint=hint)
    if _folder_name(record["name"]) != folder.name:
        raise MalformedFileError(path, "name", f"{record['name']!r} does not belong in this folder", hint=hint)
    return LocalModel(
        name=record["name"],
        path=folder,
        bytes=sum(_file_sizes(record).values()),
        revision=record["revision"],
        source=record["source"],
    )


def _file_sizes(record: dict[str, object]) -> dict[str, int]:
    files = record.get("files")
    return {str(name): size for name, size in files.items() if isinstance(size, int)} if isinstance(files, dict) else {}


@contextmanager
def _locked(root: Path, model_id: str) -> Iterator[None]:
    """Keep other processes from fetching or removing the same model meanwhile."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported on demand

    locks = root / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{_folder_name(model_id)}.lock"):
        yield
