"""Texts that must not come, as the token sequences that would spell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...


def bad_word_sequences(tokenizer: _Encoder, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences of ``words``, each as it begins a text and as it follows a space, without repetitions.

    A sequence is the tokenizer's own spelling: a model may still spell the same text by other tokens, or within a
    longer word. That is what bad words mean in transformers and vLLM too.

    Args:
        tokenizer: Of the model.
        words: Non-empty texts; leading spaces do not matter.

    Raises:
        InvalidRequestError: A word that has no tokens.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip(" ")
        found = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (bare, f" {bare}")]
        if not any(found):
            raise InvalidRequestError(
                f"bad word {word!r} has no tokens in this model's vocabulary", hint="leave it out of bad_words"
            )
        sequences.update(dict.fromkeys(sequence for sequence in found if sequence))
    return tuple(sequences)
