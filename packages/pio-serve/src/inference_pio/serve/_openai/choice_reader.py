"""One answer as it comes: its reasoning, its content and its calls told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.processing import TextDelta, ToolCallDelta

if TYPE_CHECKING:
    from inference_pio.processing import ReasoningParser, ToolCallParser


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """A piece of reasoning."""

    text: str


Piece = ReasoningText | TextDelta | ToolCallDelta


class ChoiceReader:
    """Splits the text of one answer.

    Args:
        reasoning: Tells reasoning from content; None where the model shows none.
        calls: Finds calls in the content; None where none may come.

    Attributes:
        has_calls: Whether any call has begun.
        reasoning_tokens: Tokens that are reasoning.
    """

    def __init__(self, reasoning: ReasoningParser | None, calls: ToolCallParser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self.has_calls = False
        self.reasoning_tokens = 0

    @property
    def is_plain(self) -> bool:
        """Whether its text is content and nothing else, so that it need not be read."""
        return self._reasoning is None and self._calls is None

    def push(self, text: str, *, last: bool) -> list[Piece]:
        """What one token's text, or the text held back with it, brings; ``last`` if no more follows."""
        if self.is_plain:
            return [TextDelta(text)] if text else []
        pieces: list[Piece] = []
        content = text
        if self._reasoning is not None:
            content = self._split_reasoning(text, pieces, last=last)
        if self._calls is None:
            if content:
                pieces.append(TextDelta(content))
            return pieces
        found = self._calls.push(content)
        if last:
            found += self._calls.finish()
        self.has_calls = self.has_calls or any(isinstance(piece, ToolCallDelta) for piece in found)
        return pieces + list(found)

    def _split_reasoning(self, text: str, pieces: list[Piece], *, last: bool) -> str:
        assert self._reasoning is not None
        delta = self._reasoning.push(text)
        in_reasoning = self._reasoning.in_reasoning
        reasoning, content = delta.reasoning, delta.content
        if last:
            rest = self._reasoning.finish()
            reasoning, content = reasoning + rest.reasoning, content + rest.content
        if reasoning:
            pieces.append(ReasoningText(reasoning))
        self.reasoning_tokens += in_reasoning
        return content
