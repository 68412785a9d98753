"""GGUF checkpoints: one file, or the parts of a split one."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import LimitExceededError, MalformedFileError
from inference_pio.weights._file import MappedFile
from inference_pio.weights._gguf_header import read_gguf_header
from inference_pio.weights._limits import DEFAULT_LIMITS
from inference_pio.weights._paths import resolve_member
from inference_pio.weights._tensors import TensorTable
from inference_pio.weights._text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.interfaces import TensorInfo
    from inference_pio.weights._gguf_header import GGUFHeader
    from inference_pio.weights._limits import Limits
    from inference_pio.weights._tensors import StoredTensor

# How llama.cpp names the parts of a split file.
PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GGUFSource:
    """The tensors and metadata of a GGUF file: a ``WeightSource``, and a context manager that closes it.

    Opening reads and checks the header and nothing else. Shapes are logical, outermost dimension first, the reverse of
    the order in the file. A type that cannot be decoded does not keep a file from opening; only ``decode`` refuses it.
    Iteration is in the order of the header.

    Args:
        path: The file; of a split one, the first part (``...-00001-of-0000N.gguf``), with the others beside it.
        limits: What a header may claim.

    Attributes:
        version: Version of the GGUF format.
        alignment: Alignment of the tensors in the file, in bytes.

    Raises:
        ModelNotFoundError: No such file, or a part is missing.
        MalformedFileError: A rule of the format is broken, or the parts disagree.
        LimitExceededError: More than ``limits`` allows.
        UnsupportedError: A version other than 2 and 3, or big-endian.
    """

    def __init__(self, path: Path | str, *, limits: Limits = DEFAULT_LIMITS) -> None:
        path = Path(path)
        with ExitStack() as opened:
            file = MappedFile(path)
            opened.callback(file.close)
            header = read_gguf_header(file, limits)
            tensors = dict(header.tensors)
            files = [file, *_open_other_parts(path, header, tensors, limits, opened)]
            opened.pop_all()
        self.version = header.version
        self.alignment = header.alignment
        self.files: tuple[Path, ...] = tuple(part.path for part in files)
        self._metadata = header.metadata
        self._table = TensorTable(tensors, files)

    @property
    def format(self) -> str:
        """``"gguf"``."""
        return "gguf"

    @property
    def metadata(self) -> Mapping[str, object]:
        """Key-value pairs as plain Python values: ``int``, ``float``, ``bool``, ``str``, and lists of these."""
        return self._metadata

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __enter__(self) -> GGUFSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def info(self, name: str) -> TensorInfo:
        """Header entry of ``name``; ``KeyError`` if there is none."""
        return self._table.info(name)

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The stored blocks, flat, as a read-only view of the mapping."""
        return self._table.packed(name)

    def array(self, name: str) -> NDArray[np.generic] | None:
        """A copy-on-write view of the mapping in the tensor's own dtype and shape, or None for a block format.

        ``BF16`` comes as ``uint16`` bit patterns. Also None if the file's alignment is below the size of an element.
        """
        return self._table.array(name)

    def decode(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Decoded to float32, as a new array; ``rows`` selects along the first dimension.

        Raises:
            UnsupportedError: A type that cannot be decoded.
        """
        return self._table.decode(name, rows)

    def release(self, name: str) -> None:
        """Give the pages that ``packed`` and ``decode`` read back to the system; views keep showing the same."""
        self._table.release(name)

    def close(self) -> None:
        """Close the files. Views handed out stay valid; asking for more is a ``ValueError``."""
        self._table.close()


def _open_other_parts(
    path: Path, first: GGUFHeader, tensors: dict[str, StoredTensor], limits: Limits, opened: ExitStack
) -> list[MappedFile]:
    """Open parts 2 .. N of a split file and add their tensors to ``tensors``."""
    count = _split_number(path, first, "split.count", default=1)
    if count == 1:
        return []
    name = PART_NAME.fullmatch(path.name)
    number = _split_number(path, first, "split.no", default=0)
    if name is None or int(name["count"]) != count or int(name["number"]) != number + 1:
        problem = f"part {number + 1} of {count} of a split file, which its name must say"
        raise MalformedFileError(path, "split.no", problem, hint=f"name it ...-{number + 1:05d}-of-{count:05d}.gguf")
    if number != 0:
        first_name = f"{name['stem']}-00001-of-{count:05d}.gguf"
        raise MalformedFileError(path, "split.no", f"part {number + 1} of {count}", hint=f"open {first_name}")
    if count > limits.max_shards:
        problem = f"{count} parts, more than {limits.max_shards}"
        raise LimitExceededError(path, "split.count", problem, hint="Limits(max_shards=...) raises the limit")
    files: list[MappedFile] = []
    for part in range(1, count):
        part_path = path.with_name(f"{name['stem']}-{part + 1:05d}-of-{count:05d}.gguf")
        file = MappedFile(part_path, resolve_member(path.parent, part_path.name))
        opened.callback(file.close)
        files.append(file)
        header = read_gguf_header(file, limits)
        for key, expected in (("split.count", count), ("split.no", part)):
            if header.metadata.get(key) != expected:
                problem = f"expected {expected}, got {shown(header.metadata.get(key))}"
                raise MalformedFileError(part_path, key, problem)
        twice = next((tensor for tensor in header.tensors if tensor in tensors), None)
        if twice is not None:
            raise MalformedFileError(part_path, f"tensor {twice!r}", "is in an earlier part too")
        tensors.update(header.tensors)
    total = _split_number(path, first, "split.tensors.count", default=len(tensors))
    if total != len(tensors):
        raise MalformedFileError(path, "split.tensors.count", f"says {total}, but the parts hold {len(tensors)}")
    return files


def _split_number(path: Path, header: GGUFHeader, key: str, *, default: int) -> int:
    value = header.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise MalformedFileError(path, key, f"must be a count, got {shown(value)}")
    return value
