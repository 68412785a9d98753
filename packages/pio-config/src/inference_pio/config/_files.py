"""Bounded reading of small files, and JSON without its traps.

Files that come with a model are hostile input: a size that fills memory, a FIFO that never ends, nesting that overflows
the stack, a key given twice so that two readers see different values, numbers that are not numbers.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from inference_pio.config._text import shown, shown_key
from inference_pio.interfaces import LimitExceededError, MalformedFileError

MAX_DEPTH = 64
"""Nesting of arrays and objects that is read."""

MAX_CONTAINERS = 4_000_000
"""Arrays and objects in one file: an empty one costs 3 bytes on disk and 60 in memory."""


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """The content of the regular file at ``path`` (a link to one is followed: hub caches are made of links).

    Raises:
        FileNotFoundError: There is no such file.
        MalformedFileError: Not a regular file, or unreadable.
        LimitExceededError: More than ``max_bytes``.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer; on a regular file the flag has no effect.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise MalformedFileError(path, "type", "not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MalformedFileError(path, "content", f"cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise LimitExceededError(path, "size", f"more than {max_bytes} bytes")
    return data


def read_json(path: Path | str, *, max_bytes: int) -> object:
    """The JSON document at ``path``.

    Stricter than the standard library: at most ``max_bytes`` bytes and 64 levels, UTF-8 only, each key of an object
    once, every number finite.

    Raises:
        FileNotFoundError: There is no such file.
        MalformedFileError: Not such a document, or not readable.
        LimitExceededError: Too large or too deep.
    """
    path = Path(path)
    return decode_json(read_bytes(path, max_bytes=max_bytes), path)


def decode_json(data: bytes, path: Path) -> object:
    """``data`` under the rules of :func:`read_json`; ``path`` is for messages."""
    # Brackets within strings count too, which only makes the bound a little tighter.
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise LimitExceededError(path, "nesting", f"more than {MAX_CONTAINERS} arrays and objects")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise MalformedFileError(path, shown_key(_repeated(pairs)), "key given twice")
        return table

    def constant(name: str) -> float:
        raise MalformedFileError(path, "number", f"{name} is not JSON")

    def finite(digits: str) -> float:
        number = float(digits)
        if number - number != 0.0:
            raise MalformedFileError(path, "number", f"{shown(digits)} is beyond the range of a double")
        return number

    try:
        text = data.decode("utf-8")
        document = json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_float=finite)
    except UnicodeDecodeError as error:
        raise MalformedFileError(path, "encoding", f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise MalformedFileError(
            path, "syntax", f"not JSON: {error.msg} (line {error.lineno} column {error.colno})"
        ) from error
    except RecursionError as error:
        raise LimitExceededError(path, "nesting", f"deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise LimitExceededError(path, "number", "an integer with too many digits") from error
    _check_depth(document, path)
    return document


def _repeated(pairs: list[tuple[str, object]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    msg = "no key is repeated"
    raise AssertionError(msg)


def _check_depth(document: object, path: Path) -> None:
    level = [document] if isinstance(document, list | dict) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, list | dict)
        ]
    if level:
        raise LimitExceededError(path, "nesting", f"deeper than {MAX_DEPTH} levels")
