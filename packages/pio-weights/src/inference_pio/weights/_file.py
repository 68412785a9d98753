"""A regular file, mapped read-only, and copy-on-write where someone wants to write into a view."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import DoesNotFitError, MalformedFileError, ModelNotFoundError, PioError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# O_NONBLOCK: opening a FIFO must not wait for a writer. O_NOFOLLOW: links were resolved, and judged, before.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)

# Linux refuses a writable private mapping larger than memory and swap unless told that no space need be set aside, and
# most pages are never written to. Python names the flag from 3.13 on; the number is that of the listed machines.
_NO_RESERVE: int = getattr(
    mmap,
    "MAP_NORESERVE",
    0x4000 if sys.platform == "linux" and os.uname().machine in {"x86_64", "aarch64", "riscv64"} else 0,
)


class MappedFile:
    """A file mapped once for reading and, on first demand, once more copy-on-write.

    Two mappings, because giving pages of a copy-on-write mapping back would undo what was written to them, and because
    a system that accounts strictly charges a writable private mapping in full. Views keep their mapping alive, so they
    outlast ``close``.

    Args:
        path: The file, as the user knows it; named in errors.
        real: What to open, with every symbolic link resolved; None resolves ``path``.

    Raises:
        ModelNotFoundError: No such file.
        MalformedFileError: Not a regular file, or empty.
        DoesNotFitError: The address space has no room for it.
        PioError: It may not be read.
    """

    def __init__(self, path: Path, real: Path | None = None) -> None:
        self.path = path
        self._fd: int | None = _open_regular(path, _resolve(path) if real is None else real)
        try:
            self.size = os.fstat(self._fd).st_size
            if self.size == 0:
                raise MalformedFileError(path, "size", "the file is empty", hint="download it again")
            self._data: mmap.mmap | None = self._map(writable=False)
        except PioError:
            os.close(self._fd)
            raise
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(self._data, np.uint8)
        self._writable: NDArray[np.uint8] | None = None

    @property
    def data(self) -> mmap.mmap:
        """The read-only mapping; slicing it copies."""
        if self._data is None:
            raise _closed(self.path)
        return self._data

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes ``offset .. offset + nbytes`` as a read-only view."""
        if self._bytes is None:
            raise _closed(self.path)
        return self._bytes[offset : offset + nbytes]

    def writable_view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """The same bytes as a view that may be written to; the file does not change, nor does what ``view`` shows."""
        if self._fd is None:
            raise _closed(self.path)
        if self._writable is None:
            self._writable = np.frombuffer(self._map(writable=True), np.uint8)
        return self._writable[offset : offset + nbytes]

    def release(self, offset: int, nbytes: int) -> None:
        """Give the pages of the read-only mapping that lie wholly inside the range back to the system.

        What they show does not change: they are read from the file again when next touched.
        """
        data = self.data
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED, first, length)

    def close(self) -> None:
        """Close the file. Views stay valid; their mapping goes when the last of them does."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._data = self._bytes = self._writable = None

    def _map(self, *, writable: bool) -> mmap.mmap:
        assert self._fd is not None
        try:
            if writable and hasattr(mmap, "MAP_PRIVATE"):
                flags, protection = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                return mmap.mmap(self._fd, self.size, flags=flags, prot=protection)
            return mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
        except ValueError as error:  # Python's own check that the file is not shorter than the mapping
            raise MalformedFileError(self.path, "size", "the file shrank while it was open") from error
        except OSError as error:
            if error.errno == errno.ENOMEM:
                message = f"{self.path}: no address space to map {self.size} bytes"
                raise DoesNotFitError(message, hint="raise the limit on virtual memory (ulimit -v)") from error
            raise PioError(f"{self.path}: cannot be mapped: {error.strerror}") from error


def _resolve(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file", hint="check the path") from error
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise MalformedFileError(path, "path", f"cannot be resolved: {error}") from error


def _open_regular(path: Path, real: Path) -> int:
    try:
        # Before opening, because opening some devices has an effect; and after, because the name may be swapped.
        _require_regular(path, real.lstat().st_mode)
        descriptor = os.open(real, _OPEN_FLAGS)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file", hint="check the path") from error
    except OSError as error:
        raise PioError(f"{path}: cannot be opened: {error.strerror}", hint="check its permissions") from error
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except MalformedFileError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISLNK, "a symbolic link"),
    )
    kind = next((name for test, name in kinds if test(mode)), "something else")
    raise MalformedFileError(path, "file", f"is {kind}, not a regular file")


def _closed(path: Path) -> ValueError:
    return ValueError(f"{path} is closed")
