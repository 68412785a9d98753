"""Calls as the whole answer, in JSON: Llama 3.1 to 3.3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.processing._call_reader import CallReader
from inference_pio.processing._tool_calls import Deltas

if TYPE_CHECKING:
    from inference_pio.processing._tool_calls import Delta

_TAG = "<|python_tag|>"
_SPACE = " \t\n\r"


class Llama3JsonParser:
    """An answer that is ``{"name": ..., "parameters": {...}}``, or several, with semicolons or white space between.

    ``<|python_tag|>`` may come first. An answer that begins otherwise, or is another JSON object, is content.
    """

    def __init__(self) -> None:
        self._deltas = Deltas()
        self._reader: CallReader | None = None
        self._state = "start"  # or "call", "between", "text"
        self._held = ""  # taken, but not given out

    def push(self, text: str) -> list[Delta]:
        """Take more text."""
        for position, char in enumerate(text):
            if self._state == "text":
                self._deltas.text(text[position:])
                break
            if self._state == "call":
                self._in_call(char)
            else:
                self._before_call(char)
        return self._deltas.take()

    def finish(self) -> list[Delta]:
        """What was held back, unless it is white space after a call; a call that was given out stays cut off."""
        if self._state != "between" or self._held.strip(_SPACE + ";"):
            self._deltas.text(self._held)
        self._held, self._state, self._reader = "", "start", None
        return self._deltas.take()

    def _before_call(self, char: str) -> None:
        self._held += char
        if self._state == "between":
            begun = self._held.lstrip(_SPACE)
            begun = begun.removeprefix(";").lstrip(_SPACE)
        else:
            begun = self._held.lstrip(_SPACE)
            if begun and _TAG.startswith(begun):
                return
            begun = begun.removeprefix(_TAG).lstrip(_SPACE)
        if begun == "{":
            self._reader, self._state = CallReader(need_arguments=True), "call"
            self._reader.feed(char)
        elif begun:
            self._to_text()

    def _in_call(self, char: str) -> None:
        reader = self._reader
        assert reader is not None
        known = reader.announced
        self._held += char
        if not reader.feed(char):
            self._held = char if known else self._held
            self._to_text()
            return
        if reader.announced:
            self._held = ""
            self._deltas.call(reader, begins=not known)
        if reader.done:
            self._state = "between"

    def _to_text(self) -> None:
        self._deltas.text(self._held)
        self._held, self._state = "", "text"
