"""The header of a GGUF file: key-value metadata and tensor entries, before the aligned tensor data.

Format: docs/gguf.md of the ggml project, versions 2 and 3. Nothing that the header claims is believed before it is
compared with the size of the file, in Python integers, which do not overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import MalformedFileError, TensorInfo, UnsupportedError
from inference_pio.weights._encodings import GGML_TYPES, block_layout
from inference_pio.weights._gguf_cursor import ARRAY, SCALARS, STRING, UINT32, Cursor
from inference_pio.weights._tensors import StoredTensor
from inference_pio.weights._text import check_tensor_name, foreign_file, shown

if TYPE_CHECKING:
    from inference_pio.weights._file import MappedFile
    from inference_pio.weights._limits import Limits

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_RANK = 4


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """A checked header.

    Attributes:
        version: Version of the format.
        alignment: Alignment of the tensors, in bytes.
        metadata: Key-value pairs: ``int``, ``float``, ``bool``, ``str``, and lists of these for arrays.
        tensors: The tensors, in the order of the header.
    """

    version: int
    alignment: int
    metadata: dict[str, object]
    tensors: dict[str, StoredTensor]


def read_gguf_header(file: MappedFile, limits: Limits) -> GGUFHeader:
    """Read and check the header of ``file``.

    Raises:
        MalformedFileError: A rule of the format is broken.
        LimitExceededError: More than ``limits`` allows.
        UnsupportedError: Another version, or big-endian.
    """
    cursor = Cursor(file)
    version = _version(file, cursor)
    num_tensors = cursor.uint64("tensor count")
    num_keys = cursor.uint64("key count")
    if num_tensors > limits.max_gguf_tensors:
        raise cursor.too_much("tensor count", f"{num_tensors}, more than {limits.max_gguf_tensors}", "max_gguf_tensors")
    if num_keys > limits.max_gguf_keys:
        raise cursor.too_much("key count", f"{num_keys}, more than {limits.max_gguf_keys}", "max_gguf_keys")
    cursor.end = min(file.size, cursor.position + limits.max_gguf_metadata)
    metadata: dict[str, object] = {}
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(num_keys):
        start = cursor.position
        key = cursor.string("key", limits.max_string_bytes, "max_string_bytes")
        if not key or not key.isprintable():
            raise cursor.malformed("key", f"{shown(key)} is empty or not printable", at=start)
        if key in metadata:
            raise cursor.malformed("key", f"duplicate key {shown(key)}", at=start)
        kind = cursor.uint32(f"type of {shown(key)}")
        metadata[key] = _value(cursor, key, kind, limits)
        if key == "general.alignment":
            alignment = _alignment(cursor, kind, metadata[key], limits)
    cursor.end = file.size
    entries = [_entry(file, cursor, limits) for _ in range(num_tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    return GGUFHeader(version, alignment, metadata, _place(file, entries, data_start, alignment))


def _version(file: MappedFile, cursor: Cursor) -> int:
    magic = file.data[:4]
    if magic != _MAGIC:
        foreign = foreign_file(file.data[:32])
        problem = f"starts with {magic!r}, not with {_MAGIC!r}" if foreign is None else f"not a GGUF file but {foreign}"
        raise MalformedFileError(file.path, "magic at byte 0", problem)
    cursor.position = 4
    version = cursor.uint32("version")
    if version in _VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise UnsupportedError(
            f"{file.path}: a big-endian GGUF file", hint="convert it to little-endian, or download that variant"
        )
    raise UnsupportedError(
        f"{file.path}: GGUF version {version} is not read", hint=f"versions {_VERSIONS[0]} and {_VERSIONS[1]} are"
    )


def _value(cursor: Cursor, key: str, kind: int, limits: Limits) -> object:
    field = f"value of {shown(key)}"
    if kind in SCALARS:
        return cursor.scalar(kind, field)
    if kind == STRING:
        return cursor.string(field, limits.max_string_bytes, "max_string_bytes")
    if kind != ARRAY:
        raise cursor.malformed(field, f"unknown value type {kind}", at=cursor.position - 4)
    element = cursor.uint32(f"element type of {shown(key)}")
    if element == ARRAY:
        raise cursor.malformed(field, "an array of arrays", at=cursor.position - 4)
    if element != STRING and element not in SCALARS:
        raise cursor.malformed(field, f"unknown element type {element}", at=cursor.position - 4)
    count = cursor.uint64(f"length of {shown(key)}")
    if count > limits.max_array_elements:
        raise cursor.too_much(
            field, f"an array of {count} elements, more than {limits.max_array_elements}", "max_array_elements"
        )
    if element == STRING:
        cursor.require(8 * count, field)
        return cursor.strings(count, field, limits.max_array_string_bytes)
    return cursor.scalars(element, count, field)


def _alignment(cursor: Cursor, kind: int, value: object, limits: Limits) -> int:
    if kind != UINT32 or not isinstance(value, int) or value < 1 or value & (value - 1):
        raise cursor.malformed("general.alignment", f"must be a power of two as uint32, got {shown(value)}")
    if value > limits.max_alignment:
        raise cursor.too_much("general.alignment", f"{value}, more than {limits.max_alignment}", "max_alignment")
    return value


@dataclass(frozen=True, slots=True)
class _Entry:
    info: TensorInfo
    offset: int
    header_position: int


def _entry(file: MappedFile, cursor: Cursor, limits: Limits) -> _Entry:
    start = cursor.position
    name = cursor.string("tensor name", limits.max_name_bytes, "max_name_bytes")
    check_tensor_name(file.path, f"tensor name at byte {start}", name, limits)
    field = f"tensor {name!r}"
    rank = cursor.uint32(field)
    if rank > _MAX_RANK:
        raise cursor.malformed(field, f"{rank} dimensions, more than {_MAX_RANK}", at=cursor.position - 4)
    sizes = [cursor.uint64(field) for _ in range(rank)]  # innermost first
    if math.prod(size or 1 for size in sizes) > limits.max_elements:
        problem = f"sizes {shown(sizes)} make more than {limits.max_elements} elements"
        raise cursor.too_much(field, problem, "max_elements")
    number = cursor.uint32(field)
    if number not in GGML_TYPES:
        raise cursor.malformed(
            field,
            f"unknown type {number}",
            at=cursor.position - 4,
            hint="the file may need a newer version of pio-weights",
        )
    encoding = GGML_TYPES[number]
    elements, block_bytes = block_layout(encoding)
    if elements > 1 and (not sizes or sizes[0] % elements):
        problem = f"rows of {sizes[0] if sizes else 1} elements are not whole blocks of {encoding} ({elements})"
        raise cursor.malformed(field, problem)
    offset = cursor.uint64(field)
    nbytes = math.prod(sizes) // elements * block_bytes
    info = TensorInfo(name=name, shape=tuple(reversed(sizes)), encoding=encoding, nbytes=nbytes, file=file.path)
    return _Entry(info, offset, start)


def _place(file: MappedFile, entries: list[_Entry], data_start: int, alignment: int) -> dict[str, StoredTensor]:
    """The entries with their position in the file: aligned, inside it, none twice, none over another."""
    tensors: dict[str, StoredTensor] = {}
    for entry in entries:
        info = entry.info
        where = f"tensor {info.name!r} at byte {entry.header_position}"
        if info.name in tensors:
            raise MalformedFileError(file.path, where, "a second tensor of this name")
        if entry.offset % alignment:
            problem = f"offset {entry.offset} is no multiple of the alignment {alignment}"
            raise MalformedFileError(file.path, where, problem)
        position = data_start + entry.offset
        if position + info.nbytes > file.size:
            problem = f"ends at byte {position + info.nbytes}, but the file has {file.size}"
            hint = "the file is truncated: download it again"
            raise MalformedFileError(file.path, where, problem, hint=hint)
        tensors[info.name] = StoredTensor(info, file, position)
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.info.nbytes)):
        if tensor.offset < end:
            problem = f"starts at byte {tensor.offset}, inside the tensor before it, which ends at {end}"
            raise MalformedFileError(file.path, f"tensor {tensor.info.name!r}", problem)
        end = tensor.offset + tensor.info.nbytes
    return tensors
