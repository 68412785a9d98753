"""Beam search as bookkeeping: which continuations live, which have ended, and when nothing better can come.

It knows neither logits nor caches: who runs it hands in the likeliest next tokens of every live beam, and moves the
caches as the steps say. The rules are those of transformers' beam search with ``early_stopping=False``.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inference_pio.interfaces import BeamSearchParams


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation that goes on.

    Attributes:
        token_ids: Its new tokens.
        cumulative_logprob: The sum of their log-probabilities.
    """

    token_ids: tuple[int, ...] = ()
    cumulative_logprob: float = 0.0


@dataclass(frozen=True, slots=True, order=True)
class Hypothesis:
    """A continuation that has ended. The better one is the greater one.

    Attributes:
        score: ``cumulative_logprob / len(token_ids) ** length_penalty``.
        cumulative_logprob: The sum of the log-probabilities of its tokens.
        token_ids: Its new tokens, with the end token if one ended it.
        ended: Whether an end token ended it, and not ``max_tokens``.
    """

    score: float
    cumulative_logprob: float
    token_ids: tuple[int, ...]
    ended: bool


class BeamStep(NamedTuple):
    """Where a live beam came from.

    Attributes:
        parent: Index of the beam that it continues, among those that lived before the step.
        token_id: The token that it adds.
    """

    parent: int
    token_id: int


class BeamSearch:
    """One search.

    Args:
        params: Its width, length and length penalty.
        end_ids: Tokens that end a continuation; ``params.ignore_eos`` is the caller's to honour, by giving none.
    """

    def __init__(self, params: BeamSearchParams, end_ids: Iterable[int]) -> None:
        self.params = params
        self.live: list[Beam] = [Beam()]
        """Beams that go on, the likeliest first; the prompt alone in the beginning, none once done."""
        self._end_ids = frozenset(end_ids)
        self._finished: list[Hypothesis] = []

    @property
    def done(self) -> bool:
        """Whether the search is over."""
        return not self.live

    @property
    def num_candidates(self) -> int:
        """How many of each live beam's likeliest tokens :meth:`advance` needs.

        Even if all end tokens are among the likeliest of all beams, ``beam_width`` beams go on.
        """
        return max(2, 1 + len(self._end_ids)) * self.params.beam_width

    def advance(self, candidates: Sequence[Sequence[tuple[int, float]]]) -> list[BeamStep]:
        """Take one step.

        Args:
            candidates: For each live beam, in order, its :attr:`num_candidates` likeliest tokens, or as many as there
                are, and their log-probabilities.

        Returns:
            What the new live beams, in order, continue; nothing once the search is done.

        Raises:
            ValueError: Not one list of candidates for each live beam, or a search that is done.
        """
        if self.done or len(candidates) != len(self.live):
            raise ValueError(f"candidates must be given for {len(self.live)} live beams, got {len(candidates)}")
        length = len(self.live[0].token_ids) + 1
        best = heapq.nsmallest(
            self.num_candidates,
            (
                (-(self.live[parent].cumulative_logprob + logprob), parent, token_id)
                for parent, tokens in enumerate(candidates)
                for token_id, logprob in tokens
            ),
        )
        full = length == self.params.max_tokens
        steps: list[BeamStep] = []
        beams: list[Beam] = []
        for place, (negative, parent, token_id) in enumerate(best):
            ended = token_id in self._end_ids
            if not ended and not full:
                if len(beams) < self.params.beam_width:
                    steps.append(BeamStep(parent, token_id))
                    beams.append(Beam((*self.live[parent].token_ids, token_id), -negative))
            # Those beyond the width only stand by, to take the places of beams that end.
            elif place < self.params.beam_width:
                tokens = (*self.live[parent].token_ids, token_id)
                self._finish(Hypothesis(self._score(-negative, length), -negative, tokens, ended))
        self.live = beams
        if beams and self._hopeless(beams[0], length):
            self.live, steps = [], []
        return steps

    def results(self) -> list[Hypothesis]:
        """The continuations that have ended, the best first, ``beam_width`` of them at most."""
        return list(self._finished)

    def _score(self, cumulative_logprob: float, length: int) -> float:
        return cumulative_logprob / length**self.params.length_penalty  # type: ignore[no-any-return]  # of float

    def _finish(self, hypothesis: Hypothesis) -> None:
        # The sort is stable, so of equals the one that ended first stays ahead.
        self._finished.append(hypothesis)
        self._finished.sort(key=lambda one: -one.score)
        del self._finished[self.params.beam_width :]

    def _hopeless(self, likeliest: Beam, length: int) -> bool:
        """Whether the likeliest live beam, scored as if it ended now, beats none of a full set of results."""
        if len(self._finished) < self.params.beam_width:
            return False
        return self._score(likeliest.cumulative_logprob, length) <= self._finished[-1].score
