"""The index of a sharded safetensors checkpoint: which file holds which tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import LimitExceededError, MalformedFileError, PathEscapeError
from inference_pio.weights._text import parse_json, shown

if TYPE_CHECKING:
    from pathlib import Path

    from inference_pio.weights._file import MappedFile
    from inference_pio.weights._limits import Limits

# A name in the index's own folder: no separators, no drive, nothing that a file system would take for a step.
_SHARD_NAME = re.compile(r"[\w.\-]+\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A checked index.

    Attributes:
        path: The index file.
        shards: Names of the files, sorted.
        weight_map: Tensor name to file name.
        total_bytes: Bytes of all tensors together, or None if the index does not say.
    """

    path: Path
    shards: tuple[str, ...]
    weight_map: dict[str, str]
    total_bytes: int | None


def read_shard_index(file: MappedFile, limits: Limits) -> ShardIndex:
    """Read and check an index.

    Raises:
        MalformedFileError: Not an index, or no tensor in it.
        PathEscapeError: A file name that is more than the name of a ``.safetensors`` file.
        LimitExceededError: More than ``limits`` allows.
    """
    if file.size > limits.max_index_bytes:
        problem = f"{file.size} bytes, more than {limits.max_index_bytes}"
        raise LimitExceededError(file.path, "size", problem, hint="Limits(max_index_bytes=...) raises the limit")
    index = parse_json(file.path, "index", file.data[:])
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(index, dict) or not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFileError(file.path, "weight_map", f"must map tensor names to files, got {shown(weight_map)}")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            problem = f"tensor {shown(tensor)} is said to be in {shown(name)}, which is no plain .safetensors file name"
            raise PathEscapeError(file.path, "weight_map", problem)
    shards = tuple(sorted(set(weight_map.values())))
    if len(shards) > limits.max_shards:
        problem = f"{len(shards)} files, more than {limits.max_shards}"
        raise LimitExceededError(file.path, "weight_map", problem, hint="Limits(max_shards=...) raises the limit")
    return ShardIndex(file.path, shards, weight_map, _total_bytes(file, index.get("metadata")))


def _total_bytes(file: MappedFile, metadata: object) -> int | None:
    if metadata is None:
        return None
    total = metadata.get("total_size") if isinstance(metadata, dict) else metadata
    if total is None:
        return None
    if isinstance(total, float) and total.is_integer():  # some writers sum in floats
        total = int(total)
    if type(total) is not int or total < 0:
        raise MalformedFileError(file.path, "metadata.total_size", f"must be a number of bytes, got {shown(total)}")
    return total
