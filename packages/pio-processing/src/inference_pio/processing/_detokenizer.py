"""From token ids to text, as they come: no token is decoded twice."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from inference_pio.interfaces import InvalidRequestError
from inference_pio.processing._stops import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.processing._tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns the tokens of one continuation into text as it becomes certain.

    Held back are the bytes of an unfinished UTF-8 character and the longest end of the text that may begin a stop
    string. What comes out, joined, is ``tokenizer.decode`` of all tokens, cut at the first stop string. A token costs
    time in proportion to its own text. An id that the tokenizer does not have adds no text: embeddings are often padded
    beyond the vocabulary, and a model may choose one of the rows that mean nothing.

    Args:
        tokenizer: What the tokens are of.
        stop: Strings that end the text. The one completed first wins; of those completed together, the longest.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop: Keep the stop string at the end of the text.
        prompt_token_ids: Tokens that come before. Given them, the text is what the tokens add to the prompt's, so that
            the space before its first word is kept where a tokenizer writes spaces at the beginning of words.

    Raises:
        ValueError: A stop string is empty.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._include_stop = include_stop
        self._matcher = StopMatcher((stop,) if isinstance(stop, str) else stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._first = True
        self._strip = tokenizer.leading_spaces_stripped
        self._pieces: list[str] = []
        self._stopped_by: str | None = None
        self._finished = False
        for token_id in prompt_token_ids:
            before = self._bytes_of(token_id).decode(errors="replace")
            self._strip = strip_leading_spaces(before, self._strip)[1]
            if not self._first and not self._strip:
                break

    @property
    def text(self) -> str:
        """The text so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stopped_by

    def push(self, token_id: int) -> str:
        """Take the next token.

        Returns:
            Text that became certain with it; may be empty. Nothing more comes after a stop string.

        Raises:
            ValueError: Called after :meth:`finish`.
        """
        if self._finished:
            msg = "push() after finish()"
            raise ValueError(msg)
        return self._emit(self._utf8.decode(self._bytes_of(token_id)))

    def finish(self) -> str:
        """End the text: what was held back comes out. Empty when called twice."""
        if self._finished:
            return ""
        self._finished = True
        last = self._emit(self._utf8.decode(b"", final=True))
        if self._stopped_by is not None:
            return last
        held = self._matcher.flush()
        self._pieces.append(held)
        return last + held

    def _bytes_of(self, token_id: int) -> bytes:
        """What the next token adds."""
        if self._skip_special and token_id in self._tokenizer.special_ids:
            return b""
        try:
            piece = self._tokenizer.token_bytes(token_id, first=self._first)
        except InvalidRequestError:
            return b""
        self._first = False
        return piece

    def _emit(self, decoded: str) -> str:
        """Pass decoded text through the leading-space rule and the stop strings."""
        if self._stopped_by is not None or not decoded:
            return ""
        if self._strip:
            decoded, self._strip = strip_leading_spaces(decoded, self._strip)
        certain, stop = self._matcher.push(decoded)
        if stop is not None:
            self._stopped_by = stop
            if self._include_stop:
                certain += stop
        self._pieces.append(certain)
        return certain


def strip_leading_spaces(text: str, count: int) -> tuple[str, int]:
    """Remove up to ``count`` spaces from the start of ``text``; returns it and how many may still follow."""
    stripped = text.lstrip(" ") if count >= len(text) else text[:count].lstrip(" ") + text[count:]
    removed = len(text) - len(stripped)
    return stripped, 0 if stripped else count - removed
