"""Reading the small files beside a model's weights: bounded in size and depth, strict in what they may say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from inference_pio.interfaces import LimitExceededError, MalformedFileError

if TYPE_CHECKING:
    from pathlib import Path

MAX_JSON_DEPTH = 64


def read_text(path: Path, *, max_bytes: int) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        LimitExceededError: Larger than ``max_bytes``.
        MalformedFileError: Not a regular file, unreadable, or not UTF-8.
    """
    if not path.is_file():
        raise MalformedFileError(path, "file", "is not a regular file")
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise MalformedFileError(path, "file", f"cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise LimitExceededError(path, "size", f"more than {max_bytes} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedFileError(path, "encoding", f"is not UTF-8 at byte {error.start}") from error


def read_json_object(path: Path, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        LimitExceededError: Larger than ``max_bytes`` or nested deeper than :data:`MAX_JSON_DEPTH`.
        MalformedFileError: Not JSON, not an object, a key given twice, or a number that JSON does not have.
    """

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(items)
        if len(made) != len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise MalformedFileError(path, twice[:80], "is given twice")
        return made

    def constant(name: str) -> NoReturn:
        raise MalformedFileError(path, "number", f"{name} is not JSON")

    text = read_text(path, max_bytes=max_bytes)
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise MalformedFileError(path, "syntax", problem) from error
    except RecursionError:
        raise LimitExceededError(path, "depth", f"is nested deeper than {MAX_JSON_DEPTH}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise MalformedFileError(path, "number", str(error).split(";")[0]) from None
    if not isinstance(value, dict):
        raise MalformedFileError(path, "content", f"must be an object, got {type(value).__name__}")
    if _depth(value) > MAX_JSON_DEPTH:
        raise LimitExceededError(path, "depth", f"is nested deeper than {MAX_JSON_DEPTH}")
    return value


def _depth(value: object) -> int:
    """How deep containers are nested, counted until past the limit."""
    level: list[object] = [value]
    depth = 0
    while level and depth <= MAX_JSON_DEPTH:
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1
    return depth
