"""The sampler for logits in host memory, in NumPy.

Rows are worked on in blocks that fit in the cache. Each number that decides about a row is computed from that row alone
by operations whose order does not depend on how many rows there are, so a row's token is the same bit for bit whatever
else is in the batch.

Nothing of the size of the vocabulary is sorted where it can be avoided. The k-th largest of the maxima of disjoint
parts bounds the k-th largest logit from below. Tokens that share less than ``1 - top_p`` between them are not part of
the smallest set that reaches ``top_p``, and counting the rest by the leading bits of their probabilities finds where
that set ends, roughly. Probabilities of the whole vocabulary are float32; their sums, and all probabilities of a
filtered set, are float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import LogitEdits, LogprobQuery, SamplingBatch

    Logits = NDArray[np.float32]
    Tokens = NDArray[np.int64]

_LANES = 1024
_CHUNK = 128
_BLOCK = 2**17
_SMALLEST = np.float32(2**-149)
_BIN_SHIFT = 20
_BINS_PER_NAT = 128
_MOST_BINS = 2**14
_SLACK = 1e-5  # more than float32 sums may be off by, less than matters for speed


class HostSampler:
    """Implements :class:`inference_pio.interfaces.Sampler` for NumPy logits float32 (R, V).

    Holds scratch memory of about half a MiB, or of one row where that is more; not to be shared between threads.
    """

    def __init__(self) -> None:
        self._scratch: Logits = np.empty((0, _LANES), dtype=np.float32)

    def sample(self, logits: object, batch: SamplingBatch) -> Tokens:
        """The chosen token of each row, (R,); ``logits`` are not changed.

        A row gives -1 if its logits hold a NaN, no finite value, or ``+inf``.

        Raises:
            ValueError: ``logits`` is no float32 array (R, V).
        """
        values = checked_logits(logits)
        chosen = np.full(batch.rows.size, -1, dtype=np.int64)
        edits = RowEdits(batch)
        greedy = batch.temperature == 0.0
        limited = (batch.top_k > 0) & (batch.top_k < values.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):  # extreme rows overflow to infinities, as they should
            plain = np.flatnonzero(greedy & ~edits.concerned)
            chosen[plain] = _most_likely(values, batch.rows[plain])
            for block, x in self._blocks(values, batch, edits, greedy & edits.concerned):
                chosen[block] = np.where(np.isfinite(x.max(axis=1)), x.argmax(axis=1), -1)
            for block, x in self._blocks(values, batch, edits, ~greedy & limited):
                chosen[block] = [_draw_limited(row, batch, int(index)) for row, index in zip(x, block, strict=True)]
            for block, x in self._blocks(values, batch, edits, ~greedy & ~limited):
                chosen[block] = _draw(x, batch, block)
        return chosen

    def logprobs(self, logits: object, queries: Sequence[LogprobQuery]) -> list[dict[int, tuple[float, int]]]:
        """Per query the natural log-probability under the model and the rank of tokens, most likely first.

        Of equals the lower token id ranks first. A row that holds a NaN, no finite value or ``+inf`` gives nothing.

        Raises:
            ValueError: ``logits`` is no float32 array (R, V).
        """
        values = checked_logits(logits)
        totals: dict[int, float] = {}
        results = []
        for query in queries:
            x = values[query.row]
            if query.row not in totals:
                totals[query.row] = self._log_total(x)
            total = totals[query.row]
            results.append({} if np.isnan(total) else self._ranked(x, total, query))
        return results

    def _log_total(self, logits: Logits) -> float:
        """Log of the sum of exponentials of logits (V,); NaN where there is none."""
        peak = float(logits.max())
        if not np.isfinite(peak):
            return float("nan")
        x = self._padded(1, logits.size)
        np.subtract(logits, np.float32(peak), out=x[0, : logits.size])
        np.exp(x, out=x)
        return peak + float(np.log(_chunk_sums(x).sum(dtype=np.float64)))

    def _ranked(self, logits: Logits, log_total: float, query: LogprobQuery) -> dict[int, tuple[float, int]]:
        """The answer to one query from its row of logits (V,)."""
        result: dict[int, tuple[float, int]] = {}
        if query.top > 0:
            count = min(query.top, logits.size)
            x = self._padded(1, logits.size)
            x[0, : logits.size] = logits
            ids = np.flatnonzero(logits >= _bound(x[0].reshape(-1, _LANES).max(axis=0), count))
            best = ids[np.argsort(-logits[ids], kind="stable")][:count].tolist()
            result = {token: (float(logits[token]) - log_total, rank) for rank, token in enumerate(best, start=1)}
        chosen = query.token_id
        if chosen is not None and chosen not in result:
            score = logits[chosen]
            ahead = np.count_nonzero(logits > score) + np.count_nonzero(logits[:chosen] == score)
            result[chosen] = (float(score) - log_total, int(ahead) + 1)
        return result

    def _padded(self, rows: int, vocab_size: int) -> Logits:
        """Scratch (rows, V rounded up to lanes) whose columns beyond V are ``-inf``."""
        width = -(-vocab_size // _LANES) * _LANES
        if self._scratch.shape[0] < rows or self._scratch.shape[1] != width:
            self._scratch = np.empty((max(rows, _BLOCK // width, 1), width), dtype=np.float32)
        self._scratch[:rows, vocab_size:] = -np.inf
        return self._scratch[:rows]

    def _blocks(
        self, values: Logits, batch: SamplingBatch, edits: RowEdits, members: NDArray[np.bool_]
    ) -> Iterator[tuple[Tokens, Logits]]:
        """The rows of ``batch`` that are ``members``, block by block, with their edited logits in scratch memory."""
        indices = np.flatnonzero(members)
        vocab_size = values.shape[1]
        step = max(1, _BLOCK // vocab_size)
        for start in range(0, indices.size, step):
            block = indices[start : start + step]
            x = self._padded(block.size, vocab_size)
            for place, index in enumerate(block.tolist()):
                x[place, :vocab_size] = values[batch.rows[index]]
                edits.apply(index, x[place, :vocab_size])
            yield block, x


class RowEdits:
    """What changes the logits of a batch, by row.

    Attributes:
        concerned: Which rows are changed at all, (R,).
    """

    def __init__(self, batch: SamplingBatch) -> None:
        size = batch.rows.size
        self._bias = _sorted_by_row(batch.bias, size)
        self._repetition = _sorted_by_row(batch.repetition, size)
        self._penalties = _sorted_by_row(batch.penalties, size)
        self._masks = batch.masks
        self.concerned = np.zeros(size, dtype=np.bool_)
        for edits in (batch.bias, batch.repetition, batch.penalties):
            if edits is not None:
                self.concerned[edits.rows] = True
        self._masked = np.zeros(size, dtype=np.bool_)
        if batch.masks is not None:
            self._masked = (batch.masks != -1).any(axis=1)
            self.concerned |= self._masked

    def apply(self, index: int, x: Logits) -> None:
        """Edit the logits (V,) of row ``index`` in place; a NaN anywhere stays one."""
        if not self.concerned[index]:
            return
        if self._bias is not None:
            ids, values = _of_row(self._bias, index)
            x[ids] += values
        if self._repetition is not None:
            ids, values = _of_row(self._repetition, index)
            scores = x[ids]
            x[ids] = np.where(scores > 0, scores / values, scores * values)
        if self._penalties is not None:
            ids, values = _of_row(self._penalties, index)
            x[ids] += values
        if self._masked[index]:
            assert self._masks is not None
            failed = np.isnan(x.max())
            words = self._masks[index].astype("<i4", copy=False)
            allowed = np.unpackbits(words.view(np.uint8), count=x.size, bitorder="little")
            np.copyto(x, -np.inf, where=allowed == 0)
            if failed:
                x[0] = np.nan


_Sorted = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.float32]"]


def _sorted_by_row(edits: LogitEdits | None, size: int) -> _Sorted | None:
    """Offsets of the rows (R+1,), and the token ids and values in that order."""
    if edits is None:
        return None
    order: Tokens | slice = slice(None)
    if (edits.rows[1:] < edits.rows[:-1]).any():
        order = np.argsort(edits.rows, kind="stable")
    starts = np.searchsorted(edits.rows[order], np.arange(size + 1))
    return starts, edits.token_ids[order], edits.values[order]


def _of_row(edits: _Sorted, index: int) -> tuple[Tokens, Logits]:
    starts, token_ids, values = edits
    part = slice(starts[index], starts[index + 1])
    return token_ids[part], values[part]


def checked_logits(logits: object) -> Logits:
    """``logits`` as the array (R, V) that they must be.

    Raises:
        ValueError: They are something else.
    """
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.ndim != 2 or not logits.shape[1]:
        described = f"{logits.dtype} {logits.shape}" if isinstance(logits, np.ndarray) else type(logits).__name__
        raise ValueError(f"logits must be a NumPy array float32 (R, V), got {described}")
    return logits


def _most_likely(values: Logits, rows: Tokens) -> Tokens:
    """Greedy tokens of ``rows``; each distinct row is read once, where it lies."""
    distinct, places = np.unique(rows, return_inverse=True)
    best = np.array([values[row].argmax() for row in distinct.tolist()], dtype=np.int64)
    best = np.where(np.isfinite(values[distinct, best]), best, -1)  # argmax finds the first NaN
    return best[places]


def _draw(x: Logits, batch: SamplingBatch, block: Tokens) -> Tokens:
    """Draw from the whole vocabulary; edited, padded logits (b, W) become weights in place."""
    tokens = np.full(block.size, -1, dtype=np.int64)
    peaks = x.reshape(block.size, -1, _LANES).max(axis=1).max(axis=1)
    good = np.isfinite(peaks)
    if not good.all():
        x, peaks, block = x[good], peaks[good], block[good]
    if not block.size:
        return tokens
    x -= peaks[:, None]
    if (batch.temperature[block] != 1.0).any():
        x /= batch.temperature[block][:, None]
    np.exp(x, out=x)
    totals = np.cumsum(_chunk_sums(x), axis=1, dtype=np.float64)
    drawn = _by_chunks(x, totals, batch.uniforms[block])
    filtered = (batch.typical_p[block] < 1.0) | (batch.top_p[block] < 1.0) | (batch.min_p[block] > 0.0)
    for place in np.flatnonzero(filtered).tolist():
        index = int(block[place])
        candidates = _worth_keeping(x[place], float(totals[place, -1]), batch, index)
        weights = x[place, candidates].astype(np.float64)
        drawn[place] = _draw_filtered(candidates, weights, float(totals[place, -1]), batch, index)
    tokens[good] = drawn
    return tokens


def _draw_limited(x: Logits, batch: SamplingBatch, index: int) -> int:
    """Draw from the top-k of edited, padded logits (W,)."""
    candidates, peak = _largest(x, int(batch.top_k[index]))
    if not np.isfinite(peak):
        return -1
    weights = np.exp((x[candidates] - np.float64(peak)) / np.float64(batch.temperature[index]))
    return _draw_filtered(candidates, weights, float(weights.sum()), batch, index)


def _largest(x: Logits, k: int) -> tuple[Tokens, float]:
    """Ids, ascending, of the k largest of padded logits (W,) and their equals, never of ``-inf``; and the largest."""
    lanes = x.reshape(-1, _LANES).max(axis=0)
    peak = float(lanes.max())
    bound = _bound(lanes, k)
    candidates = np.flatnonzero(x >= bound if bound > -np.inf else x > bound)
    if candidates.size > k:
        scores = x[candidates]
        candidates = candidates[scores >= np.partition(scores, -k)[-k]]
    return candidates, peak


def _bound(lanes: Logits, k: int) -> np.float32:
    """A number that at least k logits reach, from the maxima of disjoint parts of them; ``-inf`` if unknown."""
    return np.float32(np.partition(lanes, -k)[-k] if k <= lanes.size else -np.inf)


def _worth_keeping(weights: Logits, total: float, batch: SamplingBatch, index: int) -> Tokens:
    """Ids, ascending, of a superset of what the filters of row ``index`` keep; the largest weight (W,) is 1."""
    top_p = float(batch.top_p[index])
    if batch.typical_p[index] < 1.0:
        return np.flatnonzero(weights)
    if top_p == 1.0:
        return np.flatnonzero(weights >= max(batch.min_p[index], _SMALLEST))
    least = max(np.float32((1.0 - top_p) / weights.size * total * (1 - _SLACK)), batch.min_p[index], _SMALLEST)
    candidates = np.flatnonzero(weights >= least)
    # Positive floats order like their bits: sign, exponent and the first bits of the mantissa are bins to count in.
    bins = weights[candidates].view(np.int32) >> _BIN_SHIFT
    reached = np.cumsum(np.bincount(bins, weights=weights[candidates])[::-1])
    beyond = np.searchsorted(reached, top_p * total * (1 + _SLACK))
    kept: Tokens = candidates[bins >= reached.size - 1 - beyond]
    return kept


def _draw_filtered(
    candidates: Tokens, weights: NDArray[np.float64], total: float, batch: SamplingBatch, index: int
) -> int:
    """Filter candidates (C,) with weights (C,), of a whole that weighs ``total``, and draw one of them."""
    typical_p, top_p = float(batch.typical_p[index]), float(batch.top_p[index])
    min_p = float(batch.min_p[index])
    if typical_p < 1.0:
        kept = _typical(weights / total, typical_p)
        candidates, weights = candidates[kept], weights[kept]
        total = float(weights.sum())
    if top_p < 1.0:
        kept = _nucleus(weights, top_p * total)
        candidates, weights = candidates[kept], weights[kept]
    if min_p > 0.0:
        kept = weights >= min_p * weights.max()
        candidates, weights = candidates[kept], weights[kept]
    cumulative = np.cumsum(weights)
    drawn = np.searchsorted(cumulative, batch.uniforms[index] * cumulative[-1], side="right")
    return int(candidates[min(drawn, np.searchsorted(cumulative, cumulative[-1]))])


def _typical(probabilities: NDArray[np.float64], mass: float) -> NDArray[np.bool_]:
    """The locally typical set (Meister et al. 2023, section 4) of probabilities (C,), and what ties with its last."""
    surprise = np.full(probabilities.size, np.inf)
    np.log(probabilities, out=surprise, where=probabilities > 0)
    np.negative(surprise, out=surprise, where=probabilities > 0)
    entropy = np.dot(probabilities, np.where(np.isfinite(surprise), surprise, 0.0))
    deviation = np.abs(surprise - entropy)
    # Where the set ends is found by counting in bins; only the bin at its end is sorted.
    bins = np.minimum(deviation * _BINS_PER_NAT, _MOST_BINS).astype(np.int64)
    reached = np.cumsum(np.bincount(bins, weights=probabilities))
    crossing = min(int(np.searchsorted(reached, mass)), reached.size - 1)
    inside = np.flatnonzero(bins == crossing)
    order = inside[np.argsort(deviation[inside], kind="stable")]
    before = reached[crossing - 1] if crossing else 0.0
    count = int(np.searchsorted(before + np.cumsum(probabilities[order]), mass))
    kept: NDArray[np.bool_] = deviation <= deviation[order[min(count, order.size - 1)]]
    return kept


def _nucleus(weights: NDArray[np.float64], mass: float) -> NDArray[np.bool_]:
    """The smallest set of weights (C,) that reaches ``mass`` (Holtzman et al. 2020, section 3.1).

    Of equals at its edge those with lower ids are taken.
    """
    descending = -np.sort(-weights)
    count = min(int(np.searchsorted(np.cumsum(descending), mass)) + 1, weights.size)
    least = descending[count - 1]
    kept: NDArray[np.bool_] = weights >= least
    spare = int(np.count_nonzero(kept)) - count
    if spare:
        kept[np.flatnonzero(weights == least)[-spare:]] = False
    return kept


def _chunk_sums(weights: Logits) -> Logits:
    """Sums (b, W / chunk) of neighbouring weights (b, W)."""
    sums: Logits = weights.reshape(weights.shape[0], -1, _CHUNK).sum(axis=2)
    return sums


def _by_chunks(weights: Logits, totals: NDArray[np.float64], uniforms: NDArray[np.float64]) -> Tokens:
    """Invert the cumulative weights (b, W) at ``uniforms`` (b,): first the chunk, then the token within it.

    Args:
        weights: Padded with zeros.
        totals: Cumulative sums of the chunks (b, W / chunk).
        uniforms: In [0, 1).
    """
    each = np.arange(weights.shape[0])
    targets = uniforms * totals[:, -1]
    chunk = _first_beyond(totals, targets)
    targets -= np.where(chunk > 0, totals[each, chunk - 1], 0.0)
    within = weights.reshape(*totals.shape, _CHUNK)[each, chunk]
    return chunk * _CHUNK + _first_beyond(np.cumsum(within, axis=1, dtype=np.float64), targets)


def _first_beyond(cumulative: NDArray[np.float64], targets: NDArray[np.float64]) -> Tokens:
    """Per row (b, n) the first place that exceeds the target, at most the first that reaches the whole."""
    beyond = (cumulative <= targets[:, None]).sum(axis=1)
    first: Tokens = np.minimum(beyond, (cumulative < cumulative[:, -1:]).sum(axis=1))
    return first
