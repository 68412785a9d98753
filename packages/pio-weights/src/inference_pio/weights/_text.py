"""Checks of text that comes out of a weight file, shared by the formats."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from inference_pio.interfaces import LimitExceededError, MalformedFileError

if TYPE_CHECKING:
    from pathlib import Path

    from inference_pio.weights._limits import Limits

_SHOWN = 80
_PARENT_STEP = re.compile(r"(^|[/\\])\.\.([/\\]|$)")


def shown(value: object) -> str:
    """``repr`` of a value from a file, on one line and cut to a readable length."""
    text = repr(value if not isinstance(value, str) else value[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_tensor_name(path: Path, where: str, name: str, limits: Limits) -> None:
    """Refuse names that could do harm where they are printed or made into a path.

    Raises:
        LimitExceededError: Longer than ``limits.max_name_bytes``.
        MalformedFileError: Empty, unprintable, absolute, or with a ``..`` step.
    """
    if len(name) > limits.max_name_bytes or len(name.encode(errors="replace")) > limits.max_name_bytes:
        problem = f"the name {shown(name)} is longer than {limits.max_name_bytes} bytes"
        raise LimitExceededError(path, where, problem, hint="Limits(max_name_bytes=...) raises the limit")
    steps_up = ".." in name and _PARENT_STEP.search(name) is not None
    if not name or not name.isprintable() or name.startswith(("/", "\\")) or steps_up:
        raise MalformedFileError(path, where, f"bad tensor name {shown(name)}")


def parse_json(path: Path, where: str, data: bytes) -> object:
    """Strict JSON: UTF-8, no duplicate keys, no NaN or infinity, no endless nesting.

    Raises:
        MalformedFileError: Anything else.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add
            raise MalformedFileError(path, where, f"duplicate key {shown(twice)}")
        return entries

    def refuse(constant: str) -> NoReturn:
        raise MalformedFileError(path, where, f"{constant} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise MalformedFileError(path, where, "nested too deeply") from None
    except ValueError as error:  # bad UTF-8, bad syntax, an integer of thousands of digits
        raise MalformedFileError(path, where, f"not valid JSON: {error}") from error


def foreign_file(head: bytes) -> str | None:
    """What a file that is not in the expected format seems to be, judging by its first bytes."""
    known = (
        (
            b"version https://git-lfs",
            "a Git LFS pointer: the weights themselves were not downloaded; run `git lfs pull`",
        ),
        (b"GGUF", "a GGUF file: give it the suffix .gguf"),
        (b"PK\x03\x04", "a zip archive, as PyTorch's pickle files are; convert it to safetensors"),
        (b"\x80\x02", "a Python pickle; convert it to safetensors"),
        (b"<", "a web page, not a download; download it again"),
        (b"ggml", "a file of a format before GGUF; convert it again from the original"),
        (b"ggjt", "a file of a format before GGUF; convert it again from the original"),
    )
    return next((meaning for magic, meaning in known if head.startswith(magic)), None)
