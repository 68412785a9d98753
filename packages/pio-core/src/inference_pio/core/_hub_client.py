"""The only place that talks to a model hub: lists a repository, fetches files, says on one line what went wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from inference_pio.config import read_json
from inference_pio.core._hub_files import RemoteFile, is_plain_name
from inference_pio.interfaces import (
    ConfigError,
    DoesNotFitError,
    HubError,
    MalformedFileError,
    ModelNotFoundError,
    PathEscapeError,
    PioError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_INDEX_BYTES = 64 * 2**20
_LISTING_TIMEOUT_S = 20.0
_CHUNK = 2**20


class HubClient:
    """One repository of one hub.

    The user's token goes to the hub of the user's own environment (``HF_ENDPOINT``, else the public one), never to
    another ``endpoint``: a project's settings file may name one.

    Args:
        repo: ``owner/name``.
        endpoint: Address of the hub; None for the environment's.
    """

    def __init__(self, repo: str, endpoint: str | None) -> None:
        from huggingface_hub import HfApi, constants

        own = constants.ENDPOINT
        chosen = own if endpoint is None else endpoint.rstrip("/")
        self.repo = repo
        self.endpoint = chosen
        self._api: HfApi = HfApi(endpoint=chosen, token=None if chosen == own else False, library_name="inference-pio")

    def list_files(self, revision: str | None) -> tuple[str, list[RemoteFile]]:
        """The commit that ``revision`` (None: the default branch) stands for, and its files.

        Raises:
            HubError: The answer is no listing.
            PathEscapeError: A name that leads out of the repository.
        """
        try:
            info = self._api.model_info(self.repo, revision=revision, files_metadata=True, timeout=_LISTING_TIMEOUT_S)
            commit = str(info.sha)
            files = [
                RemoteFile(
                    name=str(entry.rfilename),
                    bytes=int((entry.size if entry.lfs is None else entry.lfs.size) or 0),
                    sha256=None if entry.lfs is None else entry.lfs.sha256,
                    blob_id=entry.blob_id,
                )
                for entry in info.siblings or ()
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HubError(f"{self.endpoint} sent no listing of {self.repo}: {_first_line(error)}") from error
        if not _COMMIT.fullmatch(commit):
            raise HubError(f"{self.endpoint} does not say which commit of {self.repo} it serves, got {commit[:60]!r}")
        for file in files:
            parts = file.name.replace("\\", "/").split("/")
            if not file.name.isprintable() or not all(parts) or {".", ".."} & set(parts) or ":" in parts[0]:
                place = f"{self.endpoint}/{self.repo}"
                raise PathEscapeError(place, "listing", f"unsafe file name {file.name[:100]!r}")
        return commit, files

    def fetch(
        self,
        commit: str,
        files: Sequence[RemoteFile],
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Fetch ``files`` into ``folder``, small ones first, each checked against the listing.

        Raises:
            HubError: A file cannot be fetched, or is not what the listing said; it is not in ``folder`` then.
        """
        total = sum(file.bytes for file in files)
        done = 0
        for file in sorted(files, key=lambda file: file.bytes):
            path = folder / file.name
            if not path.is_file() or _difference(path, file) is not None:
                path.unlink(missing_ok=True)
                self._download(commit, file, folder, _meter(done, total, progress))
                if difference := _difference(path, file):
                    path.unlink()
                    raise HubError(
                        f"{self.endpoint} sent a broken {self.repo}/{file.name}: {difference}", hint="try again"
                    )
            done += file.bytes
            if progress is not None:
                progress(done, total)

    def fetch_index(self, commit: str, file: RemoteFile, folder: Path) -> set[str]:
        """Fetch the index of a sharded checkpoint; returns the names of the shards.

        Raises:
            MalformedFileError: It is no such index.
            PathEscapeError: It names a file elsewhere.
        """
        self.fetch(commit, [file], folder)
        place = f"{self.repo}/{file.name}"
        document = read_json(folder / file.name, max_bytes=_MAX_INDEX_BYTES)
        weight_map = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise MalformedFileError(place, "weight_map", "must map tensors to files")
        names = set(map(str, weight_map.values()))
        for name in sorted(names):
            if not is_plain_name(name):
                raise PathEscapeError(place, "weight_map", f"unsafe file name {name[:100]!r}")
            if not name.endswith(".safetensors"):
                raise MalformedFileError(place, "weight_map", f"{name[:100]!r} is no safetensors file")
        return names

    def _download(self, commit: str, file: RemoteFile, folder: Path, meter: type[Any]) -> None:
        try:
            self._api.hf_hub_download(self.repo, file.name, revision=commit, local_dir=folder, tqdm_class=meter)
        # ValueError: too large for plain HTTP. RuntimeError: the native client of the hub's chunk store.
        except (ValueError, RuntimeError) as error:
            raise HubError(f"cannot fetch {self.repo}/{file.name}: {_first_line(error)}", hint="try again") from error


@contextmanager
def hub_errors(repo: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub and the disk raise into one line each, and keep warnings off the user's terminal."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # not annotated
    try:
        yield
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # the base of the HTTP client's errors
        # A download wraps the reason why it could not start in an error about its own cache.
        wrapped = isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None
        raise _explain(error.__cause__ if wrapped else error, repo, revision, endpoint) from error
    finally:
        logging.set_verbosity(before)


def _difference(path: Path, file: RemoteFile) -> str | None:
    """How the file at ``path`` differs from the listing, or None; the file is on the disk afterwards."""
    size = path.stat().st_size
    if file.bytes and size != file.bytes:
        return f"{size} bytes instead of {file.bytes}"
    wanted = file.sha256 or file.blob_id
    # Git names a blob by the SHA-1 of a small header and its content.
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\x00" % size, usedforsecurity=False)
    with path.open("rb+") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
        os.fsync(opened.fileno())
    return None if wanted in {None, digest.hexdigest()} else f"checksum {digest.hexdigest()} instead of {wanted}"


def _meter(start: int, total: int, progress: Callable[[int, int], None] | None) -> type[Any]:
    """What huggingface_hub takes for a progress bar: tells ``progress``, draws nothing."""
    done = start

    class Meter:
        def __init__(self, *_args: object, **_options: object) -> None:
            self.total: int | None = None

        def update(self, count: float | None = 1) -> None:
            nonlocal done
            done += int(count or 0)
            if progress is not None:
                progress(min(done, total), total)

        # Its presence says that this bar counts bytes written; bytes on the wire need no bar of their own.
        def update_transfer(self, count: float | None = 1) -> None: ...

        def set_postfix_str(self, *_args: object, **_options: object) -> None: ...

        def set_transfer_postfix_str(self, *_args: object, **_options: object) -> None: ...

        def close(self) -> None: ...

        def __enter__(self) -> Meter:
            return self

        def __exit__(self, *_args: object) -> None: ...

    return Meter


def _explain(error: BaseException | None, repo: str, revision: str | None, endpoint: str) -> PioError:
    from huggingface_hub import errors

    match error:
        case errors.HfHubHTTPError():
            return _explain_refusal(error, repo, revision, endpoint)
        case errors.OfflineModeIsEnabled():
            return HubError(
                f"cannot fetch {repo}: HF_HUB_OFFLINE forbids the network", hint="unset it or give a folder"
            )
        case OSError(errno=errno.ENOSPC):
            return DoesNotFitError(f"no space left on the disk while fetching {repo}", hint="set PIO_CACHE_DIR")
        case OSError(errno=int(), filename=str(name), strerror=reason):
            return ConfigError(
                f"cannot write {name}: {reason}", hint="set PIO_CACHE_DIR to a folder that can be written"
            )
    return HubError(
        f"cannot fetch {repo} from {endpoint}: {_first_line(error)}",
        hint="check the network, or give a folder or a .gguf file",
    )


def _explain_refusal(error: HfHubHTTPError, repo: str, revision: str | None, endpoint: str) -> PioError:
    from huggingface_hub import errors

    status = error.response.status_code
    match error:
        case errors.GatedRepoError():
            hint = f"accept its terms at {endpoint}/{repo} and set HF_TOKEN"
            return HubError(f"{repo} is gated and this account may not fetch it", hint=hint)
        case errors.RepositoryNotFoundError():
            hint = "check the spelling; a private model needs HF_TOKEN"
            return ModelNotFoundError(f"{endpoint} has no model {repo!r}", hint=hint)
        case errors.RevisionNotFoundError():
            return ModelNotFoundError(f"{repo} has no revision {revision!r}", hint="give a branch, a tag or a commit")
    hint = "check HF_TOKEN" if status in {401, 403} else "try again later"
    return HubError(f"{endpoint} refused {repo}: HTTP status {status}", hint=hint)


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
