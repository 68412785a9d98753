"""Safetensors checkpoints: one file, or shards with an index."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import MalformedFileError
from inference_pio.weights._file import MappedFile
from inference_pio.weights._limits import DEFAULT_LIMITS
from inference_pio.weights._paths import resolve_member
from inference_pio.weights._safetensors_header import read_safetensors_header
from inference_pio.weights._safetensors_index import read_shard_index
from inference_pio.weights._tensors import TensorTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.interfaces import TensorInfo
    from inference_pio.weights._limits import Limits
    from inference_pio.weights._safetensors_index import ShardIndex
    from inference_pio.weights._tensors import StoredTensor

INDEX_SUFFIX = ".safetensors.index.json"


class SafetensorsSource:
    """The tensors of a safetensors checkpoint: a ``WeightSource``, and a context manager that closes it.

    Opening reads and checks the headers of all files and nothing else. Iteration is in the order of the bytes.

    Args:
        path: A ``.safetensors`` file, or an index (``.safetensors.index.json``) with its files beside it.
        limits: What a header may claim.

    Raises:
        ModelNotFoundError: No such file, or a file of the index is missing.
        MalformedFileError: A rule of the format is broken, or index and files disagree.
        LimitExceededError: More than ``limits`` allows.
        PathEscapeError: The index names something outside its folder.
        UnsupportedError: A dtype that is not read.
    """

    def __init__(self, path: Path | str, *, limits: Limits = DEFAULT_LIMITS) -> None:
        path = Path(path)
        with ExitStack() as opened:
            if path.name.endswith(INDEX_SUFFIX):
                self._metadata, tensors, files = _open_shards(path, limits, opened)
            else:
                file = MappedFile(path)
                opened.callback(file.close)
                self._metadata, tensors = read_safetensors_header(file, limits)
                files = [file]
            opened.pop_all()
        self._table = TensorTable(tensors, files)
        self.files: tuple[Path, ...] = tuple(file.path for file in files)

    @property
    def format(self) -> str:
        """``"safetensors"``."""
        return "safetensors"

    @property
    def metadata(self) -> Mapping[str, object]:
        """The ``__metadata__`` strings of the file; of several files, what they agree on."""
        return self._metadata

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __enter__(self) -> SafetensorsSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def info(self, name: str) -> TensorInfo:
        """Header entry of ``name``; ``KeyError`` if there is none."""
        return self._table.info(name)

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes, flat, as a read-only view of the mapping."""
        return self._table.packed(name)

    def array(self, name: str) -> NDArray[np.generic] | None:
        """A copy-on-write view of the mapping in the tensor's own dtype and shape.

        ``BF16`` comes as ``uint16`` and the ``F8`` kinds as ``uint8`` bit patterns. None if the tensor is not aligned
        in the file to the size of its elements (writers that do not sort by dtype): such a view would be of no use.

        Raises:
            MalformedFileError: A ``BOOL`` tensor with a byte that is neither 0 nor 1.
        """
        return self._table.array(name)

    def decode(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Decoded to float32, as a new array; ``rows`` selects along the first dimension.

        Raises:
            UnsupportedError: Integers and booleans.
        """
        return self._table.decode(name, rows)

    def release(self, name: str) -> None:
        """Give the pages that ``packed`` and ``decode`` read back to the system; views keep showing the same."""
        self._table.release(name)

    def close(self) -> None:
        """Close the files. Views handed out stay valid; asking for more is a ``ValueError``."""
        self._table.close()


def _open_shards(
    path: Path, limits: Limits, opened: ExitStack
) -> tuple[dict[str, str], dict[str, StoredTensor], list[MappedFile]]:
    index_file = MappedFile(path)
    opened.callback(index_file.close)
    index = read_shard_index(index_file, limits)
    tensors: dict[str, StoredTensor] = {}
    files: list[MappedFile] = []
    shared: dict[str, str] | None = None
    for name in index.shards:
        file = MappedFile(path.parent / name, resolve_member(path.parent, name))
        opened.callback(file.close)
        files.append(file)
        metadata, entries = read_safetensors_header(file, limits)
        _check_shard(index, name, entries)
        tensors.update(entries)
        shared = metadata if shared is None else dict(shared.items() & metadata.items())
    absent = next((tensor for tensor in index.weight_map if tensor not in tensors), None)
    if absent is not None:
        problem = f"tensor {absent!r} is not in {index.weight_map[absent]}, where the index places it"
        raise MalformedFileError(path, "weight_map", problem)
    total = sum(tensor.info.nbytes for tensor in tensors.values())
    if index.total_bytes not in (None, total):
        problem = f"says {index.total_bytes} bytes, but the files hold {total}"
        raise MalformedFileError(path, "metadata.total_size", problem, hint="download the checkpoint again")
    index_file.close()
    return shared or {}, tensors, files


def _check_shard(index: ShardIndex, name: str, entries: dict[str, StoredTensor]) -> None:
    for tensor in entries:
        place = index.weight_map.get(tensor)
        if place != name:
            said = "does not list it" if place is None else f"places it in {place}"
            raise MalformedFileError(index.path, "weight_map", f"{name} holds tensor {tensor!r}, but the index {said}")
