"""Tool calls out of a model's text, as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.processing._call_reader import CallReader


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call: first one with the name and no arguments, then argument text.

    Attributes:
        index: Which call of this text, from 0.
        name: The function, in the first piece of each call; None in the others.
        arguments: JSON text; the pieces of a complete call, joined, are one JSON object.
    """

    index: int
    name: str | None
    arguments: str


Delta = TextDelta | ToolCallDelta


class ToolCallParser(Protocol):
    """Splits a text into content and calls. Joined, the pieces do not depend on how the text was cut.

    A call that turns out not to be one comes back as text, unchanged. Once a name was given out, this holds for what
    follows the last piece that was.
    """

    def push(self, text: str) -> list[Delta]:
        """Take more text; what cannot be part of a call passes through at once."""

    def finish(self) -> list[Delta]:
        """No more text follows: what was held back."""


def tool_call_parser(name: str) -> ToolCallParser:
    """A parser for one text: ``"hermes"`` (also Qwen 2.5 and 3) or ``"llama3-json"``.

    Raises:
        InvalidRequestError: There is no such parser.
    """
    from inference_pio.processing._hermes import HermesParser
    from inference_pio.processing._llama3_json import Llama3JsonParser

    parsers: dict[str, Callable[[], ToolCallParser]] = {"hermes": HermesParser, "llama3-json": Llama3JsonParser}
    if name not in parsers:
        raise InvalidRequestError(f"no tool call parser is named {name!r}", hint=f"there are {', '.join(parsers)}")
    return parsers[name]()


class Deltas:
    """Collects the pieces of one ``push``, joining neighbours of a kind; counts calls."""

    def __init__(self) -> None:
        self._next_index = 0
        self._pieces: list[Delta] = []

    def text(self, text: str) -> None:
        """Add content."""
        if not text:
            return
        if self._pieces and isinstance(last := self._pieces[-1], TextDelta):
            self._pieces[-1] = TextDelta(last.text + text)
        else:
            self._pieces.append(TextDelta(text))

    def call(self, reader: CallReader, *, begins: bool) -> None:
        """Add what ``reader`` has for us; ``begins`` with the name of a new call."""
        if begins:
            self._pieces.append(ToolCallDelta(self._next_index, reader.name, ""))
            self._next_index += 1
        if arguments := reader.take():
            index = self._next_index - 1
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, ToolCallDelta) and last.index == index and last.name is None:
                self._pieces[-1] = ToolCallDelta(index, None, last.arguments + arguments)
            else:
                self._pieces.append(ToolCallDelta(index, None, arguments))

    def take(self) -> list[Delta]:
        """The pieces since the last call of this."""
        pieces, self._pieces = self._pieces, []
        return pieces
