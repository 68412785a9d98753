"""From logits to a token, on the host, in NumPy."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from inference_pio.interfaces import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import SamplingParams

Float = np.floating[Any]


class SamplerState:
    """What sampling remembers of one sequence: its generator and the tokens that penalties look at.

    The generator is the sequence's own, so its draws do not depend on what else runs.

    Args:
        params: How to sample.
        prompt: Tokens of the prompt.
        index: Which of the ``n`` continuations; each draws from its own stream of the seed.
        end_ids: Tokens that may not be chosen before ``params.min_tokens``.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], *, index: int, end_ids: Iterable[int]) -> None:
        self.params = params
        seed = None if params.seed is None else [params.seed % 2**64, index]
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.end_ids = np.array(sorted(set(end_ids)), dtype=np.int64)
        self.num_generated = 0
        self._counts: Counter[int] = Counter()
        self._seen = set(prompt) if params.repetition_penalty != 1.0 else set()

    def record(self, token_id: int) -> None:
        """Note that ``token_id`` was chosen."""
        self.num_generated += 1
        self._counts[token_id] += 1
        if self.params.repetition_penalty != 1.0:
            self._seen.add(token_id)

    def adjust(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (V,) after bias, penalties and ``min_tokens``; a copy if anything changes."""
        params = self.params
        penalised = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        held_back = self.num_generated < params.min_tokens and self.end_ids.size > 0
        if not (params.logit_bias or self._seen or (penalised and self._counts) or held_back):
            return logits
        logits = logits.copy()
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias, dtype=np.int64)
            logits[ids] += np.fromiter(params.logit_bias.values(), dtype=np.float32)
        if self._seen:
            seen = np.fromiter(self._seen, dtype=np.int64)
            values = logits[seen]
            penalty = np.float32(params.repetition_penalty)
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if penalised and self._counts:
            ids = np.fromiter(self._counts, dtype=np.int64)
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            logits[ids] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
        if held_back:
            logits[self.end_ids] = -np.inf
        return logits


def choose(logits: NDArray[np.float32], state: SamplerState) -> int:
    """The next token of one sequence from its logits (V,), which are not changed.

    Raises:
        EngineError: The model produced logits that are not numbers.
    """
    logits = state.adjust(logits)
    best = int(np.argmax(logits))  # the first NaN, if there is one
    if not np.isfinite(logits[best]):
        raise EngineError(
            f"the model produced a logit of {logits[best]} for token {best}",
            hint="a wider dtype may help: dtype='float32'",
        )
    if state.params.greedy:
        return best
    candidates, probabilities = distribution(logits, state.params)
    cumulative = np.cumsum(probabilities)
    drawn = np.searchsorted(cumulative, state.generator.random() * cumulative[-1], side="right")
    return int(candidates[min(int(drawn), len(candidates) - 1)])


def distribution(logits: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens that may be drawn, by id, and their probabilities, after temperature, top-k, top-p and min-p.

    Args:
        logits: Adjusted logits (V,).
        params: ``temperature`` above 0.

    Returns:
        Token ids (C,) in ascending order and probabilities (C,) that sum to 1.
    """
    candidates = np.arange(logits.size, dtype=np.int64)
    if 0 < params.top_k < logits.size:
        candidates = np.flatnonzero(logits >= np.partition(logits, -params.top_k)[-params.top_k])
    scores = logits[candidates].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        probabilities = np.exp((scores - scores.max()) / params.temperature)
    probabilities /= probabilities.sum()
    if params.top_p < 1.0:
        kept = _nucleus(probabilities, params.top_p)
        candidates, probabilities = candidates[kept], probabilities[kept]
    if params.min_p > 0.0:
        kept = np.flatnonzero(probabilities >= params.min_p * probabilities.max())
        candidates, probabilities = candidates[kept], probabilities[kept]
    return candidates, probabilities / probabilities.sum()


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the smallest set whose probability reaches ``top_p`` (Holtzman et al. 2020, section 3.1).

    Tokens below ``(1 - top_p) / V`` cannot add up to more than ``1 - top_p``, so the set never needs them: only the
    rest is sorted.
    """
    likely = np.flatnonzero(probabilities >= (1.0 - top_p) / probabilities.size)
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    reached = np.cumsum(probabilities[order])
    count = int(np.searchsorted(reached, top_p, side="left")) + 1
    return np.sort(order[:count])


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities of logits (V,), accumulated in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - float(np.log(np.exp(shifted).sum()))


def top_logprobs(logprobs: NDArray[np.float64], count: int, chosen: int) -> dict[int, tuple[float, int]]:
    """Log-probability and rank of the ``count`` most likely tokens and of ``chosen``, by token id, best first."""
    result: dict[int, tuple[float, int]] = {}
    if count > 0:
        best = np.argpartition(-logprobs, min(count, logprobs.size) - 1)[:count]
        for rank, token_id in enumerate(best[np.argsort(-logprobs[best], kind="stable")], start=1):
            result[int(token_id)] = (float(logprobs[token_id]), rank)
    if chosen not in result:
        rank = 1 + int(np.count_nonzero(logprobs > logprobs[chosen]))
        result[chosen] = (float(logprobs[chosen]), rank)
    return result
