"""A cursor over a mapped GGUF file: little-endian scalars, strings and arrays, each checked before it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import LimitExceededError, MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_pio.weights._file import MappedFile

_WINDOW = 1 << 16
_SLOW_STRINGS = 1024
_SHORT = 255

# gguf_metadata_value_type to NumPy dtypes; 8 is a string, 9 an array.
SCALARS: Mapping[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
BOOL, STRING, ARRAY = 7, 8, 9
UINT32 = 4


class Cursor:
    """Reads forward; every error names the field and the byte it was read at.

    Args:
        file: The file.
        position: First byte to read.

    Attributes:
        position: The next byte to read.
        end: Reading beyond this byte is an error.
    """

    def __init__(self, file: MappedFile, position: int = 0) -> None:
        self._file = file
        self.position = position
        self.end = file.size

    def malformed(
        self, field: str, problem: str, *, at: int | None = None, hint: str | None = None
    ) -> MalformedFileError:
        """The error to raise when ``field``, at byte ``at`` (default: here), breaks a rule."""
        where = f"{field} at byte {self.position if at is None else at}"
        return MalformedFileError(self._file.path, where, problem, hint=hint)

    def too_much(self, field: str, problem: str, limit: str) -> LimitExceededError:
        """The error to raise when ``field`` exceeds the limit of that name."""
        where = f"{field} at byte {self.position}"
        return LimitExceededError(self._file.path, where, problem, hint=f"Limits({limit}=...) raises the limit")

    def require(self, nbytes: int, field: str) -> None:
        """Check that ``nbytes`` more can be read."""
        left = self.end - self.position
        if nbytes <= left:
            return
        if self.end < self._file.size:
            raise self.too_much(field, f"needs {nbytes} bytes beyond the {self.end} allowed", "max_gguf_metadata")
        raise self.malformed(field, f"needs {nbytes} bytes, but {left} are left", hint="download the file again")

    def take(self, nbytes: int, field: str) -> bytes:
        """The next ``nbytes``."""
        self.require(nbytes, field)
        start = self.position
        self.position += nbytes
        return self._file.data[start : self.position]

    def uint32(self, field: str) -> int:
        """The next four bytes as an unsigned integer."""
        return int.from_bytes(self.take(4, field), "little")

    def uint64(self, field: str) -> int:
        """The next eight bytes as an unsigned integer."""
        return int.from_bytes(self.take(8, field), "little")

    def scalar(self, kind: int, field: str) -> int | float | bool:
        """A value of one of ``SCALARS``."""
        return self.scalars(kind, 1, field)[0]

    def scalars(self, kind: int, count: int, field: str) -> list[int] | list[float] | list[bool]:
        """``count`` values of one of ``SCALARS``, as Python values."""
        dtype = np.dtype(SCALARS[kind])
        start = self.position
        values = np.frombuffer(self.take(count * dtype.itemsize, field), dtype)
        if kind == BOOL:
            if values.max(initial=0) > 1:
                raise self.malformed(field, f"a boolean must be 0 or 1, got {values.max()}", at=start)
            values = values.astype(np.bool_)
        listed: list[int] | list[float] | list[bool] = values.tolist()
        return listed

    def string(self, field: str, max_bytes: int, limit: str) -> str:
        """A string: its length in bytes, then UTF-8."""
        start = self.position
        length = self.uint64(field)
        if length > max_bytes:
            self.position = start
            if length > self.end - start:
                raise self.malformed(field, f"claims {length} bytes, but the file ends before that")
            raise self.too_much(field, f"a string of {length} bytes, more than {max_bytes}", limit)
        data = self.take(length, field)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.malformed(field, f"not UTF-8: {error.reason}", at=start + 8 + error.start) from error

    def strings(self, count: int, field: str, max_bytes: int) -> list[str]:
        """``count`` strings, as fast as vocabularies want to be read.

        Short strings without NUL, which is what tokens are, come a window at a time; the rest one by one.
        """
        strings: list[str] = []
        while len(strings) < count:
            some = self._window_of_strings(count - len(strings)) if max_bytes >= _SHORT else []
            if not some:
                some = self._one_by_one(min(count - len(strings), _SLOW_STRINGS), field, len(strings), max_bytes)
            strings += some
        return strings

    def _one_by_one(self, count: int, field: str, first: int, max_bytes: int) -> list[str]:
        """``count`` strings of any kind, the first of them being number ``first`` of the array."""
        data, end = self._file.data, self.end
        strings: list[str] = []
        for index in range(first, first + count):
            start = self.position + 8
            stop = start + int.from_bytes(data[self.position : start], "little")
            text = data[start:stop] if stop - start <= max_bytes and stop <= end else b"\xff"
            try:
                strings.append(text.decode("utf-8"))
                self.position = stop
            except UnicodeDecodeError:  # `string` says what is wrong, and where
                strings.append(self.string(f"{field}[{index}]", max_bytes, "max_array_string_bytes"))
        return strings

    def _window_of_strings(self, count: int) -> list[str]:
        """Up to ``count`` strings by whole-array operations, or none if the next ones are not of the simple kind.

        A string of 1 to 255 bytes begins with its length and seven zeros. All places that look so are found at once;
        the first ones are right if each follows from the one before, and if there are no other zeros up to their end.
        """
        start = self.position
        window = self._file.view(start, min(_WINDOW, self.end - start, count * (8 + _SHORT)))
        zero = window == 0
        if len(zero) < 8:
            return []
        two = zero[:-1] & zero[1:]
        four = two[:-2] & two[2:]
        seven = four[:-3] & four[3:]
        places = np.flatnonzero(~zero[: len(seven) - 1] & seven[1:])[:count]
        if len(places) == 0 or places[0] != 0:
            return []
        ends = places + 8 + window[places]
        chained = np.flatnonzero(places[1:] != ends[:-1])
        right = int(chained[0]) + 1 if len(chained) else len(places)
        right = int(np.searchsorted(ends[:right], len(window), side="right"))
        if right == 0:
            return []
        length = int(ends[right - 1])
        if np.count_nonzero(zero[:length]) != 7 * right:
            return []
        text = window[:length].copy()
        text[places[:right]] = 0
        try:
            joined: str = text[~zero[:length]].tobytes().decode("utf-8")  # of each length, one zero is left
        except UnicodeDecodeError:
            return []  # reading one by one says which string it is
        self.position += length
        return joined.split("\0")[1:]
