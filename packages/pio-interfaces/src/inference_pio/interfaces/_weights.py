"""Weights: where tensors come from, and how checkpoint names become parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a weight file's header says of one tensor.

    Attributes:
        name: Name in the file.
        shape: Logical shape, outermost (slowest) dimension first, in elements.
        encoding: Storage format: ``F32``, ``F16``, ``BF16``, ``I8``, ... or a GGUF block format such as ``Q4_K``.
        nbytes: Stored size in bytes.
        file: The file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    nbytes: int
    file: Path

    @property
    def numel(self) -> int:
        """Number of logical elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@runtime_checkable
class WeightSource(Protocol):
    """A read-only, validated set of tensors, mapped from one or more files.

    Nothing is read before it is asked for. Reading the header needs no torch and copies no tensor.
    """

    @property
    def format(self) -> str:
        """``"safetensors"`` or ``"gguf"``."""

    @property
    def metadata(self) -> Mapping[str, object]:
        """Key-value metadata of the file; empty where the format has none."""

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def __len__(self) -> int: ...

    def info(self, name: str) -> TensorInfo:
        """Header entry of ``name``.

        Raises:
            KeyError: No such tensor.
        """

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes, flat, as a read-only view of the mapping: no copy, no decoding."""

    def array(self, name: str) -> NDArray[np.generic] | None:
        """A view of the mapping in the tensor's own dtype and shape.

        None if the encoding needs decoding, or the tensor is not aligned in the file to the size of its elements.
        ``BF16`` comes as ``uint16`` bit patterns and the float8 formats as ``uint8``, since NumPy has no such dtypes.
        The view is copy-on-write: it may be written to, and the file does not change.
        """

    def decode(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Decoded to float32, as a new array; ``rows`` selects along the first dimension.

        A block format is decoded exactly as its reference implementation does, bit for bit.
        """

    def release(self, name: str) -> None:
        """Advise the system that the stored pages of ``name`` are not needed soon."""

    def close(self) -> None:
        """Close the files. Views handed out stay valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRule:
    """How one parameter is made from tensors of a checkpoint.

    Attributes:
        target: Parameter name in the module.
        sources: Tensor names, concatenated along the first dimension in this order.
        heads: Per source, the number of heads whose rows are stored in interleaved (even/odd) rotary order and must be
            brought to half-split order, or 0 to take the rows as stored. Empty means 0 for every source. Legal on
            packed rows too: it only reorders whole rows.
        optional: Absent sources leave the parameter out, to be tied by the model; otherwise they are an error.
    """

    target: str
    sources: tuple[str, ...]
    heads: tuple[int, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMap:
    """All rules of a model for one checkpoint layout.

    Attributes:
        rules: One rule per parameter.
        ignore: Regular expressions (full match) of tensors that the model has no use for.
    """

    rules: tuple[WeightRule, ...]
    ignore: tuple[str, ...] = ()
