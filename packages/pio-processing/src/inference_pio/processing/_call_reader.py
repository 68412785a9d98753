"""One tool call as JSON, ``{"name": ..., "arguments": {...}}``, read as it comes."""

from __future__ import annotations

import json

from inference_pio.processing._json_scanner import JsonScanner

_SPACE = " \t\n\r"
_ARGUMENTS = ("arguments", "parameters")
_IGNORED = ("id", "type")


class CallReader:
    """Follows a call up to its closing brace. The name may come after the arguments, which then wait for it.

    Args:
        need_arguments: Whether an object without arguments is no call.

    Attributes:
        done: Whether the call is complete.
        announced: Whether the name is known and the arguments have begun: what came so far is a call.
    """

    __slots__ = ("_key", "_name", "_need", "_phase", "_scanner", "_seen", "_sent", "_text", "announced", "done")

    def __init__(self, *, need_arguments: bool) -> None:
        self.done = False
        self.announced = False
        self._need = need_arguments
        self._phase = "open"
        self._scanner = JsonScanner()
        self._seen: set[str] = set()
        self._key = ""
        self._text: list[str] = []  # of the key or value that is being read
        self._name = ""
        self._sent: list[str] = []  # argument text that waits to be taken

    def feed(self, char: str) -> bool:
        """Take one more character; False if it does not belong to a call."""
        if self._phase in ("key", "value") and (self._text or char not in _SPACE):
            return self._in_part(char)
        if char in _SPACE:
            return True
        if self._phase == "comma" and char == "}":
            return self._close()
        wanted = {"open": "{", "colon": ":", "comma": ","}.get(self._phase)
        self._phase = "value" if self._phase == "colon" else "key"
        return char == wanted

    def take(self) -> str:
        """Argument text since the last call of this, once announced."""
        if not self.announced:
            return ""
        text = "".join(self._sent)
        self._sent.clear()
        return text

    @property
    def name(self) -> str:
        """The function's name, once announced."""
        return self._name

    def _in_part(self, char: str) -> bool:
        is_arguments = self._phase == "value" and self._key in _ARGUMENTS
        if not self._text and char != ("{" if is_arguments else '"'):
            return False
        if not self._scanner.feed(char):
            return False
        self._text.append(char)
        if is_arguments:
            self._sent.append(char)
            self.announced = self.announced or bool(self._name)
        return not self._scanner.done or self._end_part()

    def _end_part(self) -> bool:
        text = "".join(self._text)
        self._text, self._scanner = [], JsonScanner()
        if self._phase == "key":
            self._phase = "colon"
            key = json.loads(text)
            self._key = "arguments" if key in _ARGUMENTS else key
            known = self._key not in self._seen and self._key in ("name", *_ARGUMENTS, *_IGNORED)
            self._seen.add(self._key)
            return known
        self._phase = "comma"
        if self._key == "name":
            name = json.loads(text)
            self._name = name if name.isprintable() else ""  # lone surrogates have no UTF-8
            self.announced = bool(self._name and self._sent)
            return bool(self._name)
        return True

    def _close(self) -> bool:
        if not self._name or (self._need and "arguments" not in self._seen):
            return False
        if "arguments" not in self._seen:
            self._sent.append("{}")
        self.announced = self.done = True
        return True
