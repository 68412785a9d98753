"""Calls between ``<tool_call>`` tags: Hermes 2 and 3, Qwen 2.5 and 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.processing._call_reader import CallReader
from inference_pio.processing._tool_calls import Deltas

if TYPE_CHECKING:
    from inference_pio.processing._tool_calls import Delta

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACE = " \t\n\r"


class HermesParser:
    r"""Text with any number of ``<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`` in it.

    A pair of tags may hold several objects. White space around calls is dropped, and a closing tag may be missing at
    the end of the text.
    """

    def __init__(self) -> None:
        self._deltas = Deltas()
        self._reader: CallReader | None = None
        self._state = "text"  # or "call", "close" (after a call's object), "after" (its closing tag)
        self._held = ""  # taken, but not given out

    def push(self, text: str) -> list[Delta]:
        """Take more text."""
        self._process(text)
        return self._deltas.take()

    def finish(self) -> list[Delta]:
        """What was held back: the beginning of a tag or of a call; a call that was given out stays cut off."""
        while self._state == "call" and not self._announced:
            self._give_up()
        if self._state == "text" or self._held.strip(_SPACE):
            self._deltas.text(self._held)
        self._held, self._state, self._reader = "", "text", None
        return self._deltas.take()

    @property
    def _announced(self) -> bool:
        return self._reader is not None and self._reader.announced

    def _process(self, text: str) -> None:
        pending = list(reversed(text))
        while pending:
            char = pending.pop()
            if self._state == "call":
                self._in_call(char, pending)
            elif self._state == "close":
                self._after_object(char, pending)
            else:
                self._in_text(char, pending)

    def _in_text(self, char: str, pending: list[str]) -> None:
        """Look for the opening tag; white space after a call waits for what comes."""
        if self._state == "after" and not self._held.strip(_SPACE) and char in _SPACE:
            self._held += char
            return
        held = self._held + char
        tag = held.lstrip(_SPACE) if self._state == "after" else held
        if tag == _OPEN:
            self._begin_call(_OPEN)
        elif _OPEN.startswith(tag):
            self._held = held
        elif self._held:  # the tag may begin anew within what was held, at its last character at the earliest
            self._deltas.text(self._held)
            self._held, self._state = "", "text"
            pending.append(char)
        else:
            self._deltas.text(char)
            self._state = "text"

    def _in_call(self, char: str, pending: list[str]) -> None:
        reader = self._reader
        assert reader is not None
        known = reader.announced
        if not reader.feed(char):
            if known:
                self._state = "text"
                pending.append(char)
            else:
                self._held += char
                pending.extend(reversed(self._give_up(replay=False)))
            return
        self._held += char
        if reader.announced:
            self._held = ""
            self._deltas.call(reader, begins=not known)
        if reader.done:
            self._state, self._held = "close", ""

    def _after_object(self, char: str, pending: list[str]) -> None:
        """The closing tag, or another object."""
        tag = (self._held + char).lstrip(_SPACE)
        if tag == "{":
            self._begin_call(self._held)
            pending.append(char)
        elif tag == _CLOSE:
            self._held, self._state = "", "after"
        elif _CLOSE.startswith(tag):
            self._held += char
        else:
            pending.extend(reversed(self._held + char))
            self._held, self._state = "", "after"

    def _begin_call(self, held: str) -> None:
        self._reader, self._state, self._held = CallReader(need_arguments=False), "call", held

    def _give_up(self, *, replay: bool = True) -> str:
        """It was no call: the tag is text, and what follows it is looked at once more."""
        raw, self._held, self._reader, self._state = self._held, "", None, "text"
        size = len(_OPEN) if raw.startswith(_OPEN) else len(raw) - len(raw.lstrip(_SPACE)) + 1
        self._deltas.text(raw[:size])
        if replay:
            self._process(raw[size:])
        return raw[size:]
