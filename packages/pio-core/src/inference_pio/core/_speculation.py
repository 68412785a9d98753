"""How many tokens to draft: acceptance and the price of a step, learnt while decoding, and what pays under them.

Decoding ahead of the model costs rows: a step verifies ``k`` drafted tokens of a sequence beside the row that plain
decoding would compute. Where a step takes about as long with more rows, accepted drafts are a gain; where its time
grows with every row, they are not. Which of the two holds depends on the machine and on how many sequences run, so it
is measured.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

_WINDOW = 15
"""Observations that a median is taken of, and so how many it takes to forget: half of them outvote the rest."""
_BELIEVED = 3
"""Proposals after which their price is believed: the first ones read whole prompts."""
_SEQUENCE_MEMORY = 0.9
_OVERALL_MEMORY = 0.99
_IDLE_MEMORY = 0.98
_SEQUENCE_PRIOR = 4.0
_OVERALL_PRIOR = (1.0, 2.0)
"""Accepted and tried tokens that are believed before any was seen: one of two."""
_HIGHEST = 0.995
_MARGIN = 1.05
_TRIAL_SHARE = 0.02
_TRIAL_FLOOR = 0.2
_TRIAL_LENGTH = 3
_PLAIN_INTERVAL = 256
_CELL_AGE = 512


def count_accepted(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """How many leading drafts the target chose as well.

    Args:
        drafts: ``k`` proposed tokens.
        sampled: ``k + 1`` tokens, each drawn from the target's distribution after the drafts before it.

    Returns:
        ``a`` in ``[0, k]``: ``sampled[: a + 1]`` are the tokens that plain decoding would have given with the same
        draws, since each of their contexts holds accepted tokens only.

    Raises:
        ValueError: Their lengths do not fit.
    """
    if len(sampled) != len(drafts) + 1:
        msg = f"{len(drafts)} drafts need {len(drafts) + 1} samples, got {len(sampled)}"
        raise ValueError(msg)
    for accepted, (draft, sample) in enumerate(zip(drafts, sampled, strict=False)):
        if draft != sample:
            return accepted
    return len(drafts)


@dataclass(slots=True)
class SpeculationStats:
    """Counters since the start, for metrics.

    Attributes:
        num_drafts: Proposals that were verified, empty ones apart.
        draft_tokens: Tokens in them.
        accepted_tokens: Those that the target chose as well.
        accepted_per_pos: How often the draft at each position of a proposal was accepted.
    """

    num_drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_pos: list[int] = field(default_factory=list)

    def record(self, proposed: int, accepted: int) -> None:
        """Count one verified proposal."""
        self.num_drafts += 1
        self.draft_tokens += proposed
        self.accepted_tokens += accepted
        self.accepted_per_pos.extend([0] * (proposed - len(self.accepted_per_pos)))
        for position in range(accepted):
            self.accepted_per_pos[position] += 1


class StepCost:
    """Seconds of a step as a function of its rows.

    Steps of about as many rows (exactly up to 8, then within a fifth) share a cell, whose time is the median of its
    latest ones: a pause, or a step that happened to carry a prompt, does not move it. Between cells the time is
    interpolated; beyond the largest it goes on with the slope from half as many rows on, never falling; where only one
    cell was seen, further rows are taken to be free, so that they are tried. A cell that was not seen for 512 steps is
    dropped.
    """

    def __init__(self) -> None:
        self._cells: dict[int, deque[tuple[int, float]]] = {}
        self._seen: dict[int, int] = {}
        self._steps = 0
        self._curve: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one step."""
        cell = _cell(rows)
        self._cells.setdefault(cell, deque(maxlen=_WINDOW)).append((rows, seconds))
        self._steps += 1
        self._seen[cell] = self._steps
        self._curve = None
        if self._steps % 64 == 0:
            for old in [cell for cell, seen in self._seen.items() if self._steps - seen >= _CELL_AGE]:
                del self._cells[old], self._seen[old]

    def age(self, rows: int) -> int | None:
        """Steps since one of about ``rows`` rows; None if there was none."""
        seen = self._seen.get(_cell(rows))
        return None if seen is None else self._steps - seen

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds of steps of ``rows`` (M,), as (M,); all 1 before the first observation."""
        if not self._cells:
            return np.ones(rows.size)
        if self._curve is None:
            cells = [self._cells[cell] for cell in sorted(self._cells)]
            self._curve = (
                np.array([sum(count for count, _ in cell) / len(cell) for cell in cells]),
                np.array([median(seconds for _, seconds in cell) for cell in cells]),
            )
        known, seconds = self._curve
        beyond = np.maximum(rows - known[-1], 0.0)
        predicted: NDArray[np.float64] = np.interp(rows, known, seconds) + beyond * self._last_slope(known, seconds)
        return predicted

    @staticmethod
    def _last_slope(known: NDArray[np.float64], seconds: NDArray[np.float64]) -> float:
        half = max(0, int(np.searchsorted(known, known[-1] / 2, side="right")) - 1)
        distance = float(known[-1] - known[half])
        return max(0.0, float(seconds[-1] - seconds[half]) / distance) if distance > 0 else 0.0


def _cell(rows: int) -> int:
    return rows if rows <= 8 else 8 + math.floor(4 * math.log2(rows / 8))


@dataclass(slots=True)
class _Acceptance:
    """Accepted tokens and tried ones, exponentially forgotten; ``tried_at``: the step of the latest trial."""

    accepted: float = 0.0
    tried: float = 0.0
    tried_at: int = -1

    def observe(self, accepted: int, tried: int, memory: float) -> None:
        self.accepted = memory * self.accepted + accepted
        self.tried = memory * self.tried + tried

    def forget(self, memory: float) -> None:
        self.accepted *= memory
        self.tried *= memory


class SpeculationControl:
    """Chooses how many tokens to draft for each sequence, in each step; 0 where drafting loses.

    The model (Leviathan et al. 2023, arXiv:2211.17192, section 3.3, carried over to batches and measured prices): each
    draft of sequence ``i`` is accepted with probability ``a_i``, independently, so that ``k_i`` drafts are expected to
    give ``1 + a_i + ... + a_i^k_i = (1 - a_i^(k_i + 1)) / (1 - a_i)`` tokens. A step of ``R`` rows takes ``T(R)``
    seconds (:class:`StepCost`) and a drafted token ``c`` seconds (the lower quartile of the latest proposals). Chosen
    are the ``k_i`` that maximise

        sum_i (1 - a_i^(k_i + 1)) / (1 - a_i)  /  (T(other_rows + sum_i (1 + k_i)) + c sum_i k_i),

    exactly: the j-th draft of sequence ``i`` adds ``a_i^j`` tokens, which falls with ``j``, so the best ``m`` drafts
    are the ``m`` largest of these, whatever a row costs. They are drafted only if that is 5% better than nothing.

    ``a_i`` is the share of accepted among tried tokens (those after the first rejected one were not tried), with a
    memory of about ten proposals, starting from the share of all sequences, which starts from one half. Drafts and
    samples are coupled by common draws (Daliri et al. 2024, arXiv:2408.07978), so nothing here changes which tokens
    come out, only when.

    How it finds back, and what that may cost:

    1. A sequence that is not drafted for returns to the share of all within about 50 steps.
    2. While nothing at all is drafted, a trial of up to 3 tokens for one sequence, each in turn, is made in two steps
       in a row (in the first a draft model may have to catch up), as soon as 2% of the time spent since the last one
       would pay for both. A step of a trial is priced as at least a fifth of a plain one, so that at most a tenth of
       the steps are of trials, which take at most 2% of the time as predicted.
    3. A step without prompts is plain if none of as many sequences was seen yet, or none in the last 256 steps, so
       that what drafting is compared with is known.
    4. What larger steps cost is forgotten after 512 steps without one; if nothing suggests otherwise they are then
       tried: at worst one dear step in 512.

    Args:
        max_draft: The most tokens to draft per sequence and step; 0 never drafts.

    Attributes:
        max_draft: As given.
        stats: Counters for metrics.

    Raises:
        ValueError: ``max_draft`` is negative.
    """

    def __init__(self, max_draft: int) -> None:
        if max_draft < 0:
            msg = f"max_draft must be at least 0, got {max_draft}"
            raise ValueError(msg)
        self.max_draft = max_draft
        self.stats = SpeculationStats()
        self._cost = StepCost()
        self._draft_cost: deque[float] = deque(maxlen=_WINDOW)
        self._overall = _Acceptance()
        self._sequences: dict[Hashable, _Acceptance] = {}
        self._credit = 0.0
        self._num_calls = 0
        self._trial: Hashable | None = None
        self._second: Hashable | None = None

    def observe_step(self, rows: int, sequences: int, seconds: float) -> None:
        """Learn what a step costs.

        Args:
            rows: Rows of the ragged batch, drafts and prompts included.
            sequences: Sequences in it; a step of none teaches nothing.
            seconds: From laying it out to its tokens, proposing apart.

        Raises:
            ValueError: Fewer rows than sequences, or a time that is negative or not finite.
        """
        if not 0 <= sequences <= rows or not math.isfinite(seconds) or seconds < 0:
            msg = f"a step has at least a row per sequence and takes time, got {rows}, {sequences} and {seconds}"
            raise ValueError(msg)
        if sequences == 0:
            return
        self._cost.observe(rows, seconds)
        self._credit += _TRIAL_SHARE * seconds

    def observe_draft(self, seconds: float, tokens: int) -> None:
        """Learn what proposing ``tokens`` tokens in all cost; an empty proposal teaches nothing."""
        if tokens > 0:
            self._draft_cost.append(seconds / tokens)

    def observe(self, key: Hashable, proposed: int, accepted: int) -> None:
        """Learn how many of ``proposed`` tokens of a sequence were accepted; an empty proposal teaches nothing.

        Raises:
            ValueError: More accepted than proposed.
        """
        if not 0 <= accepted <= proposed:
            msg = f"between 0 and {proposed} drafts can be accepted, got {accepted}"
            raise ValueError(msg)
        if proposed == 0:
            return
        tried = accepted + (accepted < proposed)
        self._sequences.setdefault(key, _Acceptance()).observe(accepted, tried, _SEQUENCE_MEMORY)
        self._overall.observe(accepted, tried, _OVERALL_MEMORY)
        self.stats.record(proposed, accepted)
        if key == self._trial:  # paid for only now: a proposer that found nothing has not spent it
            self._credit = 0.0
            self._trial, self._second = None, key

    def acceptance(self, key: Hashable) -> float:
        """``a_i``: the probability that the next draft of a sequence is accepted, as far as known."""
        accepted, tried = _OVERALL_PRIOR
        overall = (self._overall.accepted + accepted) / (self._overall.tried + tried)
        own = self._sequences.get(key)
        if own is None:
            return min(overall, _HIGHEST)
        return min((own.accepted + _SEQUENCE_PRIOR * overall) / (own.tried + _SEQUENCE_PRIOR), _HIGHEST)

    def draft_lengths(self, keys: Sequence[Hashable], *, other_rows: int) -> list[int]:
        """How many tokens to draft for each sequence of the coming step; to be asked once per step.

        Args:
            keys: Sequences that decode, each once.
            other_rows: Rows of the step that no draft can join: prompts.
        """
        if not keys or self.max_draft == 0:
            return [0] * len(keys)
        self._num_calls += 1
        lengths = self._best_lengths(keys, other_rows)
        if any(lengths) and other_rows == 0:
            age = self._cost.age(len(keys))
            if age is None or age >= _PLAIN_INTERVAL:
                return [0] * len(keys)
        if not any(lengths):
            self._try_one(keys, other_rows, lengths)
        for key, length in zip(keys, lengths, strict=True):
            own = self._sequences.get(key)
            if length == 0 and own is not None:
                own.forget(_IDLE_MEMORY)
        return lengths

    def forget(self, key: Hashable) -> None:
        """The sequence has ended. Harmless for an unknown one."""
        self._sequences.pop(key, None)

    def _best_lengths(self, keys: Sequence[Hashable], other_rows: int) -> list[int]:
        count = len(keys)
        shares = np.array([self.acceptance(key) for key in keys])
        gains = (shares[:, None] ** np.arange(1, self.max_draft + 1)).ravel()
        order = np.argsort(-gains, kind="stable")  # among equals the earlier draft of a sequence stays first
        tokens = count + np.concatenate([[0.0], np.cumsum(gains[order])])
        drafts = np.arange(tokens.size)
        seconds = self._cost.predict(other_rows + count + drafts) + self._draft_price() * drafts
        speed = tokens / np.maximum(seconds, 1e-9)  # a clock may give 0
        best = int(np.argmax(speed))
        if speed[best] < _MARGIN * speed[0]:
            return [0] * count
        lengths: list[int] = np.bincount(order[:best] // self.max_draft, minlength=count).tolist()
        return lengths

    def _try_one(self, keys: Sequence[Hashable], other_rows: int, lengths: list[int]) -> None:
        """Give one of ``lengths``, all 0, a few tokens if the time for that has been saved up."""
        length = min(_TRIAL_LENGTH, self.max_draft)
        second, self._second = self._second, None
        if second in keys:
            lengths[keys.index(second)] = length
            return
        rows = other_rows + len(keys)
        plain, tried = self._cost.predict(np.array([rows, rows + length]))
        price = 2 * max(tried - plain + self._draft_price() * length, _TRIAL_FLOOR * plain)
        if self._credit < price:
            return
        index = min(range(len(keys)), key=lambda i: self._tried_at(keys[i]))
        self._sequences.setdefault(keys[index], _Acceptance()).tried_at = self._num_calls
        self._trial = keys[index]
        lengths[index] = length

    def _tried_at(self, key: Hashable) -> int:
        own = self._sequences.get(key)
        return -1 if own is None else own.tried_at

    def _draft_price(self) -> float:
        """Seconds per drafted token, apart from what reading prompts and catching up took."""
        known = sorted(self._draft_cost)
        return known[len(known) // 4] if len(known) >= _BELIEVED else 0.0
