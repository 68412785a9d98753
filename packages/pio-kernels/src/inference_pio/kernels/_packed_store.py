"""Packed weights on disk: one file per model, read into huge pages, verified before use, bounded in all.

A mapping of the file would cost nothing to open, but its pages are small ones: products of one row, which are bound by
memory, were a quarter slower from it. Reading takes less time than to wait for the pages of a mapping to be touched.

A file is named by what it was packed from, so it is never wrong, only unused, and writers need no lock: each writes a
file of its own and renames it. A file that is damaged, truncated or of another version is packed again.

========= ==========================================================
bytes     content
========= ==========================================================
0         magic ``PIOPACK`` and a zero byte
8         format version, size of the JSON text, both uint32
16        BLAKE2b digest of the JSON text, 32 bytes
48        JSON: key, label, parts, size, a checksum per MiB of data
4096 n    data, the parts at their offsets; the file ends with them
========= ==========================================================
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from stat import S_ISREG
from typing import TYPE_CHECKING

from inference_pio.kernels._library import default_threads, load_library
from inference_pio.kernels._memory import allocate
from inference_pio.kernels._tiles import LAYOUT_VERSION

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.interfaces import WeightSource
    from inference_pio.kernels._packed_layout import PackedLayout

DEFAULT_MAX_BYTES = 32 * 2**30
"""Bound on all packed copies together."""

_LOG = logging.getLogger(__name__)
_FORMAT_VERSION = 2
_MAGIC = b"PIOPACK\0"
_HEAD = struct.Struct("<8sII32s")
_PAGE = 4096
_CHUNK = 2**20
_SAMPLE = 256
_MAX_HEADER = 64 * 2**20
_SUFFIX = ".pack"
_STALE_SECONDS = 3600.0
# Opening a FIFO must not wait for a writer.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """A packed copy on disk.

    Attributes:
        key: Names what it was packed from.
        label: The model's file or folder; empty if the copy is damaged.
        nbytes: Size of the file.
        used: When it was last used, in seconds since the epoch.
    """

    key: str
    label: str
    nbytes: int
    used: float


# Inside of the class below, `list` is the method.
_Entries = list[PackedEntry]
_Paths = list["Path"]


class _UnusableError(Exception):
    """A packed copy is not what it should be; the message says why."""


class PackedStore:
    """A folder of packed weights.

    Args:
        folder: Made when something is first kept there.
        max_bytes: Bound on all copies together; those used longest ago give way to new ones.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._unwritable = False

    def open(self, key: str, layout: PackedLayout) -> NDArray[np.uint8] | None:
        """The data of ``key``, or None if there is no usable copy; says why one is not usable."""
        path = self._path(key)
        try:
            data = _open(path, key, layout)
        except (FileNotFoundError, NotADirectoryError):  # the latter: a file stands where the folder would be
            return None
        except (OSError, _UnusableError) as error:
            _LOG.warning("the packed weights in %s cannot be used: %s; they are packed again", path, error)
            return None
        with contextlib.suppress(OSError):  # a folder that is only read keeps no order of use
            os.utime(path)
        return data

    def save(self, key: str, layout: PackedLayout, data: NDArray[np.uint8], *, label: str) -> None:
        """Keep ``data`` under ``key`` if there is room; a folder that cannot be written to is told of once."""
        header = _header(key, layout, data, label)
        nbytes = len(header) + layout.nbytes
        if nbytes > self.max_bytes or self._unwritable:
            if not self._unwritable:
                _LOG.info("packed weights of %d bytes are not kept: the cache may hold %d", nbytes, self.max_bytes)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(nbytes, key)
            _write(self._path(key), header, data)
        except OSError as error:
            self._unwritable = True
            _LOG.warning("packed weights cannot be kept in %s: %s; every start packs them again", self.folder, error)

    def list(self) -> _Entries:
        """All copies, the one used last first."""
        entries = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = path.lstat()
                if S_ISREG(status.st_mode):  # what we have written; nothing else is ours to describe or remove
                    entries.append(PackedEntry(path.stem, _label(path), status.st_size, status.st_mtime))
        return sorted(entries, key=lambda entry: entry.used, reverse=True)

    def remove(self, key: str) -> bool:
        """Remove a copy; processes that use it are not disturbed. False if there is none."""
        try:
            self._path(key).unlink()
        except FileNotFoundError:
            return False
        return True

    def clear(self) -> int:
        """Remove all copies; the bytes that this gives back."""
        entries = self.list()
        return sum(entry.nbytes for entry in entries if self.remove(entry.key))

    def _path(self, key: str) -> Path:
        if not key.isalnum():
            raise ValueError(f"a key is a hexadecimal digest, got {key!r}")
        return self.folder / f"{key}{_SUFFIX}"

    def _files(self) -> _Paths:
        return [path for path in self.folder.glob(f"*{_SUFFIX}") if path.stem.isalnum()]

    def _make_room(self, nbytes: int, key: str) -> None:
        """Remove what was used longest ago until ``nbytes`` more fit, and what writers that died have left."""
        for path in self.folder.glob(f"*{_SUFFIX}.tmp"):
            with contextlib.suppress(OSError):  # another process was faster
                if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()
        entries = [entry for entry in self.list() if entry.key != key]
        total = sum(entry.nbytes for entry in entries) + nbytes
        while total > self.max_bytes and entries:
            oldest = entries.pop()
            with contextlib.suppress(OSError):  # some systems keep files that are in use
                self.remove(oldest.key)
                total -= oldest.nbytes


def content_key(source: WeightSource, layout: PackedLayout) -> str:
    """Names the packed copy of ``source`` in ``layout``: 40 hexadecimal digits.

    It covers the versions of both formats, the layout, what each part is made from, sizes and times of the files, and
    bytes from the begin, the middle and the end of every tensor.
    """
    digest = blake2b(digest_size=20)
    origins = [
        [[p.info.name, p.info.encoding, p.info.shape, p.info.nbytes, p.stored, p.row, p.rows, p.heads] for p in origin]
        for origin in layout.origins
    ]
    tensors = sorted({part.info.name for origin in layout.origins for part in origin})
    files = sorted({source.info(name).file for name in tensors})
    stats = [file.stat() for file in files]
    told: list[object] = [_FORMAT_VERSION, LAYOUT_VERSION, sys.byteorder, layout.table(), origins]
    told.append([[status.st_size, status.st_mtime_ns] for status in stats])
    digest.update(json.dumps(told).encode())
    for name in tensors:
        stored = source.packed(name)
        middle = stored.size // 2
        for sample in (stored[:_SAMPLE], stored[middle : middle + _SAMPLE], stored[-_SAMPLE:]):
            digest.update(sample.tobytes())
        source.release(name)
    return digest.hexdigest()


def _header(key: str, layout: PackedLayout, data: NDArray[np.uint8], label: str) -> bytes:
    """The bytes before the data."""
    told = {
        "key": key,
        "label": label,
        "parts": layout.table(),
        "nbytes": layout.nbytes,
        "checksums": _checksums(data),
    }
    text = json.dumps(told).encode()
    head = _HEAD.pack(_MAGIC, _FORMAT_VERSION, len(text), blake2b(text, digest_size=32).digest()) + text
    return head.ljust(-(-len(head) // _PAGE) * _PAGE, b"\0")


def _write(path: Path, header: bytes, data: NDArray[np.uint8]) -> None:
    """Write under another name, then rename: who opens ``path`` finds all of it or nothing."""
    descriptor, name = tempfile.mkstemp(prefix=path.stem, suffix=f"{_SUFFIX}.tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)  # noqa: PTH105 - the name is a string
    except OSError:
        os.unlink(name)  # noqa: PTH108 - the name is a string
        raise


def _open(path: Path, key: str, layout: PackedLayout) -> NDArray[np.uint8]:
    """Read and verify a copy.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        _UnusableError: It is not a whole, undamaged copy of ``layout``.
    """
    descriptor = os.open(path, _READ)
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        if not S_ISREG(status.st_mode):
            raise _UnusableError("it is not a regular file")
        begin, told = _read_header(descriptor)
        if told.get("key") != key or told.get("parts") != layout.table():
            raise _UnusableError("it holds other weights")
        if size != begin + layout.nbytes:
            raise _UnusableError(f"it has {size} bytes instead of {begin + layout.nbytes}")
        data = allocate(layout.nbytes, "packed weights")
        with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
            file.seek(begin)
            checksums = [_read_chunk(file, data[first : first + _CHUNK]) for first in range(0, data.nbytes, _CHUNK)]
    finally:
        os.close(descriptor)
    if checksums != told.get("checksums"):
        raise _UnusableError("its checksum is wrong")
    data.flags.writeable = False
    return data


def _read_chunk(file: FileIO, chunk: NDArray[np.uint8]) -> str:
    """Fill ``chunk`` and say its checksum while it is still in the processor's cache."""
    rest = memoryview(chunk.data)
    while rest:
        count = file.readinto(rest)
        if not count:
            raise _UnusableError("it is truncated")
        rest = rest[count:]
    return f"{_checksum(chunk):016x}"


def _read_header(descriptor: int) -> tuple[int, dict[str, object]]:
    """Where the data begin, and what the JSON says."""
    head = os.read(descriptor, _HEAD.size)
    if len(head) < _HEAD.size:
        raise _UnusableError("it is truncated")
    magic, version, length, expected = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise _UnusableError("it is no file of packed weights")
    if version != _FORMAT_VERSION:
        raise _UnusableError(f"it is of format version {version}, not {_FORMAT_VERSION}")
    if length > _MAX_HEADER:
        raise _UnusableError(f"its header claims {length} bytes")
    text = os.read(descriptor, length)
    if blake2b(text, digest_size=32).digest() != expected:
        raise _UnusableError("its header is damaged")
    told = json.loads(text)
    if not isinstance(told, dict):
        raise _UnusableError("its header is no object")
    return -(-(_HEAD.size + length) // _PAGE) * _PAGE, told


def _label(path: Path) -> str:
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return ""
    try:
        return str(_read_header(descriptor)[1].get("label", ""))
    except (OSError, _UnusableError):
        return ""
    finally:
        os.close(descriptor)


def _checksums(data: NDArray[np.uint8]) -> list[str]:
    """A checksum per chunk of ``data``."""
    with ThreadPoolExecutor(default_threads()) as pool:
        chunks = [data[first : first + _CHUNK] for first in range(0, data.nbytes, _CHUNK)]
        return [f"{checksum:016x}" for checksum in pool.map(_checksum, chunks)]


def _checksum(data: NDArray[np.uint8]) -> int:
    return int(load_library().pio_checksum(data.ctypes.data, data.nbytes))
