"""The JSON of streams of completions, as far as a load test needs it; what else a server says is skipped."""

from __future__ import annotations

from typing import Any

import msgspec


class Delta(msgspec.Struct):
    """A piece of a chat's message; any of its fields may be missing."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    """A piece of one answer: ``text`` of a completion, ``delta`` of a chat."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def says_something(self) -> bool:
        """Whether it carries text, reasoning or a tool call."""
        if self.text:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls
        )


class Usage(msgspec.Struct):
    """Tokens as the server counted them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(msgspec.Struct):
    """One event of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()

    @property
    def problem(self) -> str | None:
        """What its error says; None without one."""
        error = bytes(self.error)
        return None if error in {b"", b"null"} else error_message(b'{"error":%b}' % error)


class _Detail(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None


class _Nested(msgspec.Struct):
    error: _Detail | str

    @property
    def text(self) -> str | None:
        return self.error if isinstance(self.error, str) else self.error.message


class _Flat(msgspec.Struct):
    message: str | None = None
    detail: str | None = None

    @property
    def text(self) -> str | None:
        return self.message or self.detail


class _Model(msgspec.Struct):
    id: str


class ModelList(msgspec.Struct):
    """Answer of ``/v1/models``."""

    data: list[_Model]


def error_message(body: bytes) -> str:
    """What an error reply says, in any of the shapes that servers use, on one line; empty if it says nothing."""
    kinds: tuple[type[_Nested | _Flat], ...] = (_Nested, _Flat)
    for kind in kinds:
        try:
            text = msgspec.json.decode(body, type=kind).text
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if text:
            return _one_line(text)
    return _one_line(body[:400].decode("utf-8", errors="replace"))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."
