"""Prompts for a load test: made of random words, none beginning like another unless that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from inference_pio.benchmarks._serve_words import WORDS
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

Content: TypeAlias = "str | Sequence[Mapping[str, object]]"
"""Text, or the messages of a chat."""

_DISTINCT_WORDS = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to ask, and how long the answer is to be.

    Attributes:
        content: Text, or the messages of a chat.
        output_len: Tokens of the answer at most.
    """

    content: Content
    output_len: int


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Lengths from ``low`` to ``high`` tokens, both included, all as likely."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        """``count`` lengths."""
        lengths: list[int] = generator.integers(self.low, self.high + 1, size=count).tolist()
        return lengths


@dataclass(frozen=True, slots=True)
class WordRate:
    """How a server counts text of our words.

    Attributes:
        tokens_per_word: Tokens that a further word adds.
        overhead: Tokens besides the words: the template of a chat, the token at the beginning.
    """

    tokens_per_word: float = 1.0
    overhead: float = 0.0

    def words(self, tokens: int) -> int:
        """How many words make a prompt of so many tokens; at least one."""
        return max(1, round((tokens - self.overhead) / self.tokens_per_word))


def as_messages(content: Content) -> list[Mapping[str, object]]:
    """The messages of a chat; text is what its user says."""
    return [{"role": "user", "content": content}] if isinstance(content, str) else list(content)


class PromptMaker:
    """Makes prompts; those of one maker all differ within their first three words, and neighbours in the first.

    Caches of prefixes work on pages of many tokens, so none of these prompts finds anything of another in them. Two
    makers of different seeds hardly ever agree in three words either.

    Args:
        generator: Draws the words.
        rate: How the server counts them.
        shared_prefix_len: Tokens that all prompts begin with, on purpose.
    """

    def __init__(self, generator: np.random.Generator, rate: WordRate, *, shared_prefix_len: int = 0) -> None:
        self._generator = generator
        self._rate = rate
        self._next = int(generator.integers(len(WORDS) ** _DISTINCT_WORDS))
        self._prefix_len = shared_prefix_len
        self._prefix = self._draw(rate.words(shared_prefix_len)) if shared_prefix_len else []

    def make(self, input_len: int, output_len: int) -> Prompt:
        """The next prompt.

        Args:
            input_len: Tokens of the prompt behind the shared prefix, with whatever the server adds to it.
            output_len: Tokens of the answer.
        """
        words = self._rate.words(self._prefix_len + input_len) - len(self._prefix)
        return self.make_words(max(words, 1), output_len)

    def make_words(self, words: int, output_len: int) -> Prompt:
        """The next prompt, of so many words behind the shared prefix."""
        head = self._distinct()[:words]
        return Prompt(" ".join([*self._prefix, *head, *self._draw(words - len(head))]), output_len)

    def _distinct(self) -> list[str]:
        """The digits of a running number, the one that always changes first."""
        number, self._next = self._next, (self._next + 1) % len(WORDS) ** _DISTINCT_WORDS
        return [WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(_DISTINCT_WORDS)]

    def _draw(self, count: int) -> list[str]:
        return [WORDS[index] for index in self._generator.integers(len(WORDS), size=count)]


def parse_length(option: str, text: str) -> LengthRange:
    """``"128"`` or ``"64-256"``.

    Raises:
        InvalidRequestError: It is something else.
    """
    low, dash, high = text.partition("-")
    parts = [low, high if dash else low]
    if not all(part.isascii() and part.isdigit() and len(part) <= 7 and int(part) > 0 for part in parts):
        raise InvalidRequestError(f"{option}: {text!r} is no length", hint=f"as in {option} 128 or {option} 64-256")
    if int(parts[0]) > int(parts[1]):
        raise InvalidRequestError(f"{option}: {text!r} ends before it begins", hint=f"as in {option} 64-256")
    return LengthRange(int(parts[0]), int(parts[1]))
