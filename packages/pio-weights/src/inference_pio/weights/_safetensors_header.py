"""The header of a safetensors file: 8 bytes of length, JSON, then the tensors without a gap.

Checked more strictly than the format's own library does, because a header is hostile until shown otherwise: no unknown
keys, bounded ranks, names and sizes, an aligned start, every byte of the file accounted for by exactly one tensor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from inference_pio.interfaces import LimitExceededError, MalformedFileError, TensorInfo, UnsupportedError
from inference_pio.weights._encodings import SAFETENSORS_DTYPES, block_layout
from inference_pio.weights._tensors import StoredTensor
from inference_pio.weights._text import check_tensor_name, foreign_file, parse_json, shown

if TYPE_CHECKING:
    from inference_pio.weights._file import MappedFile
    from inference_pio.weights._limits import Limits

_LENGTH_BYTES = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def read_safetensors_header(file: MappedFile, limits: Limits) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors of ``file``, in the order of their bytes.

    Raises:
        MalformedFileError: A rule of the format, or one of the stricter ones above, is broken.
        LimitExceededError: More than ``limits`` allows.
        UnsupportedError: A dtype that is not read.
    """
    text, data_start = _header_bytes(file, limits)
    header = parse_json(file.path, "header", text)
    assert isinstance(header, dict)  # it starts with a brace
    metadata = _metadata(file, header.pop("__metadata__", {}))
    if len(header) > limits.max_safetensors_tensors:
        problem = f"{len(header)} tensors, more than {limits.max_safetensors_tensors}"
        raise LimitExceededError(
            file.path, "header", problem, hint="Limits(max_safetensors_tensors=...) raises the limit"
        )
    tensors = [_tensor(file, name, entry, data_start, limits) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.info.nbytes))
    _check_coverage(file, tensors, data_start)
    return metadata, {tensor.info.name: tensor for tensor in tensors}


def _header_bytes(file: MappedFile, limits: Limits) -> tuple[bytes, int]:
    if file.size < _LENGTH_BYTES + 2:
        raise MalformedFileError(file.path, "size", f"{file.size} bytes are too few for a safetensors file")
    length = int.from_bytes(file.data[:_LENGTH_BYTES], "little")
    data_start = _LENGTH_BYTES + length
    if data_start > file.size or file.data[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        foreign = foreign_file(file.data[:32])
        if foreign is not None:
            raise MalformedFileError(file.path, "header", f"not a safetensors file but {foreign}")
    if data_start > file.size:
        problem = f"claims {length} bytes, but the file ends {file.size - _LENGTH_BYTES} bytes after byte 8"
        raise MalformedFileError(file.path, "header length at byte 0", problem, hint="download the file again")
    if length > limits.max_safetensors_header:
        problem = f"{length} bytes, more than {limits.max_safetensors_header}"
        hint = "Limits(max_safetensors_header=...) raises the limit"
        raise LimitExceededError(file.path, "header length at byte 0", problem, hint=hint)
    if data_start % 8:
        problem = f"{length} is no multiple of 8, so the tensors are not aligned"
        raise MalformedFileError(
            file.path, "header length at byte 0", problem, hint="save the file again with a current safetensors"
        )
    text = file.data[_LENGTH_BYTES:data_start]
    if not text.startswith(b"{"):
        raise MalformedFileError(file.path, "header at byte 8", f"must start with '{{', got {text[:1]!r}")
    return text, data_start


def _metadata(file: MappedFile, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise MalformedFileError(file.path, "__metadata__", f"must be an object, got {shown(metadata)}")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise MalformedFileError(file.path, "__metadata__", f"{shown(key)} must be a string, got {shown(value)}")
        if any("\ud800" <= character <= "\udfff" for character in key + value):
            raise MalformedFileError(file.path, "__metadata__", f"{shown(key)} holds half a surrogate pair")
    return cast("dict[str, str]", metadata)


def _tensor(file: MappedFile, name: str, entry: object, data_start: int, limits: Limits) -> StoredTensor:
    check_tensor_name(file.path, "header", name, limits)
    where = f"tensor {name!r}"
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        keys = sorted(entry) if isinstance(entry, dict) else entry
        problem = f"must have exactly dtype, shape and data_offsets, got {shown(keys)}"
        raise MalformedFileError(file.path, where, problem)
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise UnsupportedError(
            f"{file.path}: {where}: dtype {shown(dtype)} is not read",
            hint=f"read are {', '.join(sorted(SAFETENSORS_DTYPES))}",
        )
    shape = _sizes(file, where, "shape", entry["shape"])
    if len(shape) > limits.max_safetensors_rank:
        problem = f"{len(shape)} dimensions, more than {limits.max_safetensors_rank}"
        raise LimitExceededError(file.path, where, problem, hint="Limits(max_safetensors_rank=...) raises the limit")
    if math.prod(size or 1 for size in shape) > limits.max_elements:
        problem = f"shape {shown(shape)} has more than {limits.max_elements} elements"
        raise LimitExceededError(file.path, where, problem, hint="Limits(max_elements=...) raises the limit")
    offsets = _sizes(file, where, "data_offsets", entry["data_offsets"])
    data_bytes = file.size - data_start
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        problem = f"data_offsets {shown(offsets)} do not lie within the {data_bytes} bytes after the header"
        raise MalformedFileError(file.path, where, problem, hint="the file may be truncated: download it again")
    nbytes = math.prod(shape) * block_layout(dtype)[1]
    if offsets[1] - offsets[0] != nbytes:
        problem = f"{dtype} {shown(shape)} takes {nbytes} bytes, but data_offsets span {offsets[1] - offsets[0]}"
        raise MalformedFileError(file.path, where, problem)
    info = TensorInfo(name=name, shape=tuple(shape), encoding=dtype, nbytes=nbytes, file=file.path)
    return StoredTensor(info, file, data_start + offsets[0])


def _sizes(file: MappedFile, where: str, key: str, value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise MalformedFileError(file.path, where, f"{key} must be a list of sizes, got {shown(value)}")
    return value


def _check_coverage(file: MappedFile, tensors: list[StoredTensor], data_start: int) -> None:
    """Each byte after the header belongs to one tensor, and no two empty tensors claim one place."""
    end = data_start
    empty_at = -1
    for tensor in tensors:
        where = f"tensor {tensor.info.name!r}"
        if tensor.offset != end:
            kind = "a gap before it" if tensor.offset > end else "an overlap with another tensor"
            problem = f"data_offsets leave {kind}: starts at byte {tensor.offset}, expected {end}"
            raise MalformedFileError(file.path, where, problem)
        if tensor.info.nbytes == 0:
            if tensor.offset == empty_at:
                raise MalformedFileError(file.path, where, f"a second empty tensor at byte {tensor.offset}")
            empty_at = tensor.offset
        end += tensor.info.nbytes
    if end != file.size:
        raise MalformedFileError(file.path, "size", f"the tensors end at byte {end}, the file at {file.size}")
