"""Drafts that are partly wrong, always made: what speculation must bear without a trace."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from inference_pio.core import SpeculationControl

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from inference_pio.core import DraftRequest

_WRONG = 0.3


class HalfKnowing:
    """Knows how texts go on and says so, up to random lies; a ``Proposer``.

    Args:
        texts: Whole sequences, prompt and continuation.
        vocab_size: Tokens to choose lies from.
        seed: Of the lies.
    """

    name = "half-knowing"

    def __init__(self, texts: Sequence[Sequence[int]], *, vocab_size: int, seed: int = 0) -> None:
        self._texts = [list(text) for text in texts]
        self._vocab_size = vocab_size
        self._draw = random.Random(seed)  # noqa: S311 - test data, not a secret

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Up to as many tokens as are wanted of each request; any of them may be wrong."""
        return [self._propose(request) for request in requests]

    def forget(self, key: Hashable) -> None:
        """Nothing is kept of a sequence."""

    def _propose(self, request: DraftRequest) -> list[int]:
        done, draw = len(request.tokens), self._draw
        right = next((text[done:] for text in self._texts if text[:done] == list(request.tokens)), [])
        drafts = [*right, *(draw.randrange(self._vocab_size) for _ in range(request.num_draft))]
        return [
            draw.randrange(self._vocab_size) if draw.random() < _WRONG else token
            for token in drafts[: draw.randint(0, request.num_draft)]
        ]


class AlwaysDraft(SpeculationControl):
    """Drafts as many tokens as may be, whether that pays or not: what pays depends on the machine."""

    def draft_lengths(self, keys: Sequence[Hashable], *, other_rows: int) -> list[int]:  # noqa: ARG002 - the signature
        """``max_draft`` for each."""
        return [self.max_draft] * len(keys)
