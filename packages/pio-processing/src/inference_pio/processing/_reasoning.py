"""A model's reasoning and its answer, told apart as the text comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inference_pio.interfaces import InvalidRequestError

_OPEN, _CLOSE = "<think>", "</think>"
_NEWLINES = "\r\n"
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of a text; either part may be empty."""

    reasoning: str
    content: str


class ReasoningParser(Protocol):
    """Splits a text into reasoning and content. Joined, the pieces do not depend on how the text was cut."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends within the reasoning.

        A token after whose text this holds counts as reasoning: the opening tag does, the closing tag does not.
        """

    def push(self, text: str) -> ReasoningDelta:
        """Take more text; only what may be part of a tag is held back, and newlines next to one are dropped."""

    def finish(self) -> ReasoningDelta:
        """No more text follows: what was held back."""


def reasoning_parser(name: str, *, prompt: str = "") -> ReasoningParser:
    """A parser for one text.

    Args:
        name: ``"think"``: reasoning between ``<think>`` and ``</think>`` (Qwen 3, DeepSeek R1).
        prompt: What the text continues: some templates end with the opening tag.

    Raises:
        InvalidRequestError: There is no such parser.
    """
    return ThinkParser(opened=prompt_opens_reasoning(name, prompt))


def reasoning_tags(name: str) -> tuple[str, str]:
    """What the reasoning that parser ``name`` reads stands between.

    Raises:
        InvalidRequestError: There is no such parser.
    """
    if name != "think":
        raise InvalidRequestError(f"no reasoning parser is named {name!r}", hint="there is think")
    return _OPEN, _CLOSE


def prompt_opens_reasoning(name: str, prompt: str) -> bool:
    """Whether what continues ``prompt`` begins within the reasoning.

    Raises:
        InvalidRequestError: There is no such parser.
    """
    return prompt.rstrip(_SPACE).endswith(reasoning_tags(name)[0])


class ThinkParser:
    """Reasoning comes first, if at all: an opening tag later in the text is content.

    Args:
        opened: Whether the text begins within the reasoning; an opening tag may then come once more.
    """

    def __init__(self, *, opened: bool) -> None:
        self._state = "start"  # then "reasoning", "after" (the closing tag), "content"
        self._opened = opened
        self._begun = False  # whether any reasoning was given out
        self._held = ""
        self._reasoning: list[str] = []
        self._content: list[str] = []

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends within the reasoning."""
        return self._state == "reasoning" or (self._state == "start" and self._opened)

    def push(self, text: str) -> ReasoningDelta:
        """Take more text."""
        for position, char in enumerate(text):
            if self._state == "content":
                self._content.append(text[position:])
                break
            if self._state == "start":
                self._at_start(char)
            elif self._state == "reasoning":
                self._in_reasoning(char)
            elif char not in _NEWLINES:
                self._state = "content"
                self._content.append(char)
        return self._take()

    def finish(self) -> ReasoningDelta:
        """What was held back."""
        (self._reasoning if self.in_reasoning else self._content).append(self._held)
        self._held, self._state = "", "content"
        return self._take()

    def _at_start(self, char: str) -> None:
        self._held += char
        begun = self._held.lstrip(_SPACE)
        if begun == _OPEN:
            self._held, self._state = "", "reasoning"
        elif begun and not _OPEN.startswith(begun):
            held, self._held = self._held, ""
            if not self._opened:
                self._state = "content"
                self._content.append(held)
                return
            self._state = "reasoning"
            for one in held:  # shorter than the closing tag
                self._in_reasoning(one)

    def _in_reasoning(self, char: str) -> None:
        """Hold newlines, and what may be the closing tag after them."""
        if char in _NEWLINES and not self._begun and not self._held:
            return
        held = self._held + char
        newlines = len(held) - len(held.lstrip(_NEWLINES))
        tag = held[newlines:]
        if tag == _CLOSE:
            self._held, self._state = "", "after"
        elif _CLOSE.startswith(tag):
            self._held = held
        elif char in _NEWLINES or char == _CLOSE[0]:
            self._reasoning.append(self._held)
            self._held, self._begun = char, True
        else:
            self._reasoning.append(held)
            self._held, self._begun = "", True

    def _take(self) -> ReasoningDelta:
        delta = ReasoningDelta("".join(self._reasoning), "".join(self._content))
        self._reasoning.clear()
        self._content.clear()
        return delta
