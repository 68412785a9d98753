"""The tensors of one or more mapped files: what both formats have in common once their headers are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import MalformedFileError, UnsupportedError
from inference_pio.weights._dequantize import decodable_encodings, dequantize
from inference_pio.weights._encodings import ENCODINGS, block_layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import TensorInfo
    from inference_pio.weights._file import MappedFile


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies. The header was checked: the bytes are inside the file and as many as shape and encoding say.

    Attributes:
        info: The header's entry.
        file: The file that holds it.
        offset: Position of its first byte in the file.
    """

    info: TensorInfo
    file: MappedFile
    offset: int


class TensorTable:
    """Named tensors and the files they lie in; the methods are those of ``WeightSource``."""

    def __init__(self, tensors: Mapping[str, StoredTensor], files: Sequence[MappedFile]) -> None:
        self._tensors = tensors
        self._files = files

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Header entry of ``name``."""
        return self._get(name).info

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes, read-only."""
        tensor = self._get(name)
        return tensor.file.view(tensor.offset, tensor.info.nbytes)

    def array(self, name: str) -> NDArray[np.generic] | None:
        """A copy-on-write view in the tensor's own dtype and shape, or None."""
        tensor = self._get(name)
        dtype = ENCODINGS[tensor.info.encoding].dtype
        if dtype is None or tensor.offset % np.dtype(dtype).itemsize:
            return None
        if tensor.info.encoding == "BOOL" and self.packed(name).max(initial=0) > 1:
            raise MalformedFileError(tensor.info.file, f"tensor {name!r}", "a BOOL that is neither 0 nor 1")
        return tensor.file.writable_view(tensor.offset, tensor.info.nbytes).view(dtype).reshape(tensor.info.shape)

    def decode(self, name: str, rows: slice | None) -> NDArray[np.float32]:
        """Decoded to float32, as a new array."""
        info = self._get(name).info
        if info.encoding not in decodable_encodings():
            plain = ENCODINGS[info.encoding].dtype is not None
            way_out = "array() gives its elements as they are" if plain else "use a file quantised to one of these"
            raise UnsupportedError(
                f"{info.file}: tensor {name!r} is stored as {info.encoding}, which cannot be decoded to float32",
                hint=f"decoded are {', '.join(decodable_encodings())}; {way_out}",
            )
        if rows is None:
            return dequantize(info.encoding, self.packed(name), info.numel).reshape(info.shape)
        first, count = _row_range(info, rows)
        shape = (count, *info.shape[1:])
        row = info.numel // info.shape[0] if info.shape[0] else 0
        return _decode_range(info.encoding, self.packed(name), first * row, (first + count) * row).reshape(shape)

    def release(self, name: str) -> None:
        """Give the pages of ``packed`` and ``decode`` back to the system."""
        tensor = self._get(name)
        tensor.file.release(tensor.offset, tensor.info.nbytes)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _get(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            msg = f"no tensor {name!r} among the {len(self._tensors)} of {self._files[0].path}"
            raise KeyError(msg) from None


def _row_range(info: TensorInfo, rows: slice) -> tuple[int, int]:
    if not info.shape:
        msg = f"tensor {info.name!r} is a scalar and has no rows to select"
        raise ValueError(msg)
    if rows.step not in (None, 1):
        msg = f"rows must be contiguous, got {rows}"
        raise ValueError(msg)
    start, stop, _ = rows.indices(info.shape[0])
    return start, max(stop - start, 0)


def _decode_range(encoding: str, packed: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.float32]:
    """Elements ``start .. stop``; only a vector can ask for a part of a block."""
    elements, nbytes = block_layout(encoding)
    first_block, end_block = start // elements, -(-stop // elements)
    blocks = packed[first_block * nbytes : end_block * nbytes]
    decoded = dequantize(encoding, blocks, (end_block - first_block) * elements)
    return decoded[start - first_block * elements : stop - first_block * elements]
