"""Where a JSON value ends, one character at a time, and whether it is one."""

from __future__ import annotations

import re

_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS = ("true", "false", "null")
MAX_DEPTH = 256


class JsonScanner:
    """Follows one object, array or string (RFC 8259), whatever comes after it.

    Attributes:
        done: Whether the value is complete.
    """

    __slots__ = ("_closers", "_expects", "_hex_left", "_is_key", "_token", "done")

    def __init__(self) -> None:
        self.done = False
        self._closers: list[str] = []
        self._expects = "value"
        self._token = ""
        self._hex_left = 0
        self._is_key = False

    def feed(self, char: str) -> bool:
        """Take one more character; False if no JSON goes on like this (or nests more than 256 deep)."""
        match self._expects:
            case "string":
                return self._in_string(char)
            case "escape":
                self._expects, self._hex_left = ("hex", 4) if char == "u" else ("string", 0)
                return char in '"\\/bfnrtu'
            case "hex":
                self._hex_left -= 1
                self._expects = "hex" if self._hex_left else "string"
                return char in "0123456789abcdefABCDEF"
            case "number":
                return self._in_number(char)
            case "literal":
                self._token += char
                if self._token in _LITERALS:
                    self._end_value()
                return any(literal.startswith(self._token) for literal in _LITERALS)
        return char in _SPACE or self._between(char)

    def _between(self, char: str) -> bool:
        expects = self._expects
        if expects in ("value or close", "key or close", "comma") and self._closers and char == self._closers[-1]:
            self._closers.pop()
            self._end_value()
            return True
        if expects in ("value", "value or close"):
            return self._begin_value(char)
        if expects in ("key", "key or close"):
            self._expects, self._is_key = "string", True
            return char == '"'
        if expects == "colon":
            self._expects = "value"
            return char == ":"
        self._expects = "key" if self._closers[-1] == "}" else "value"
        return char == ","

    def _begin_value(self, char: str) -> bool:
        if char in "{[":
            self._closers.append("}" if char == "{" else "]")
            self._expects = "key or close" if char == "{" else "value or close"
            return len(self._closers) <= MAX_DEPTH
        if char == '"':
            self._expects, self._is_key = "string", False
            return True
        self._token = char
        self._expects = "literal" if char in "tfn" else "number"
        return bool(self._closers) and char in "tfn-0123456789"

    def _in_string(self, char: str) -> bool:
        if char == "\\":
            self._expects = "escape"
        elif char == '"' and self._is_key:
            self._expects = "colon"
        elif char == '"':
            self._end_value()
        return char >= " "

    def _in_number(self, char: str) -> bool:
        if char in "+-.0123456789eE":
            self._token += char
            return True
        if not _NUMBER.fullmatch(self._token):
            return False
        self._end_value()
        return self.feed(char)

    def _end_value(self) -> None:
        self.done = not self._closers
        self._expects = "comma"
