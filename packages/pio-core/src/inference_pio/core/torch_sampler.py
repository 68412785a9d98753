"""The sampler for logits on a device, in PyTorch: the host sampler's arithmetic without its searching.

A device sorts fast and waits badly, so everything is done for all rows at once, nothing is read back before the chosen
tokens, and the host decides from the parameters alone what has to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from inference_pio.interfaces import LogitEdits, LogprobQuery, SamplingBatch

_CHUNK = 256
_LOGPROB_ROWS = 32
_LARGEST_TOP_K_TO_REUSE = 2048

_Descending = tuple["NDArray[np.int64]", "Tensor"]


class TorchSampler:
    """Implements :class:`inference_pio.interfaces.Sampler` for tensors float32 (R, V).

    Draws what the host sampler draws, but for rounding: where a uniform number falls within about 1e-6 of the border
    between two tokens, or two probabilities that a filter parts differ by as little.

    Args:
        device: Where the logits are.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    @torch.inference_mode()
    def sample(self, logits: object, batch: SamplingBatch) -> NDArray[np.int64]:
        """The chosen token of each row, (R,); ``logits`` are not changed.

        A row gives -1 if its logits hold a NaN, no finite value, or ``+inf``.

        Raises:
            ValueError: ``logits`` is no tensor float32 (R, V) on the device.
        """
        values = self._checked(logits)
        if not batch.rows.size:
            return np.empty(0, dtype=np.int64)
        x, failed = self._edited(values, batch)
        peaks, chosen = x.max(dim=1)
        drawn = np.flatnonzero(batch.temperature > 0.0)
        if drawn.size:
            places = self._put(drawn)
            scaled = x if drawn.size == batch.rows.size else x[places]
            tokens = self._draw(scaled, peaks[places], batch, drawn)
            chosen = chosen.index_put((places,), tokens)
        chosen = torch.where(torch.isfinite(peaks) & ~failed, chosen, -1)
        return np.asarray(chosen.cpu().numpy(), dtype=np.int64)

    @torch.inference_mode()
    def logprobs(self, logits: object, queries: Sequence[LogprobQuery]) -> list[dict[int, tuple[float, int]]]:
        """Per query the natural log-probability under the model and the rank of tokens, most likely first.

        Of equals the lower token id ranks first. A row that holds a NaN, no finite value or ``+inf`` gives nothing.

        Raises:
            ValueError: ``logits`` is no tensor float32 (R, V) on the device.
        """
        values = self._checked(logits)
        results: list[dict[int, tuple[float, int]]] = []
        for start in range(0, len(queries), _LOGPROB_ROWS):
            results += self._logprobs(values, queries[start : start + _LOGPROB_ROWS])
        return results

    def _checked(self, logits: object) -> Tensor:
        described = type(logits).__name__
        if isinstance(logits, torch.Tensor):
            if (logits.dtype, logits.device.type) == (torch.float32, self.device.type) and logits.ndim == 2:
                return logits
            described = f"{logits.dtype} {tuple(logits.shape)} on {logits.device}"
        raise ValueError(f"logits must be a tensor float32 (R, V) on {self.device}, got {described}")

    def _put(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _edited(self, values: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
        """Logits (R, V) after all edits, and which rows held a NaN before the masks, bool (R,)."""
        edits = (batch.bias, batch.repetition, batch.penalties)
        untouched = batch.masks is None and all(edit is None for edit in edits)
        in_order = np.array_equal(batch.rows, np.arange(values.shape[0]))
        x = values if untouched and in_order else values[self._put(batch.rows)]
        for edit in edits:
            if edit is not None:
                self._edit(x, edit, divide=edit is batch.repetition)
        failed = torch.isnan(x.amax(dim=1)) if batch.masks is not None else torch.zeros_like(x[:, 0], dtype=torch.bool)
        if batch.masks is not None:
            words = self._put(batch.masks)
            bits = torch.arange(32, dtype=torch.int32, device=self.device)
            allowed = (words[:, :, None] >> bits) & 1
            x.masked_fill_(allowed.flatten(1)[:, : x.shape[1]] == 0, -torch.inf)
        return x, failed

    def _edit(self, x: Tensor, edits: LogitEdits, *, divide: bool) -> None:
        """Change single logits (R, V) in place."""
        where = (self._put(edits.rows), self._put(edits.token_ids))
        changes = self._put(edits.values)
        scores = x[where]
        x[where] = torch.where(scores > 0, scores / changes, scores * changes) if divide else scores + changes

    def _draw(self, x: Tensor, peaks: Tensor, batch: SamplingBatch, drawn: NDArray[np.int64]) -> Tensor:
        """Tokens (R',) from edited logits (R', V), which are used up, of the rows ``drawn`` of the batch."""
        temperature = self._put(batch.temperature[drawn])
        x = (x - peaks[:, None]) / temperature[:, None]
        descending = self._limit(x, batch.top_k[drawn])
        weights = x.exp_()
        if (batch.typical_p[drawn] < 1.0).any():
            self._keep_typical(weights, batch.typical_p[drawn])
            descending = None  # no longer what is kept
        if (batch.top_p[drawn] < 1.0).any():
            self._keep_nucleus(weights, batch.top_p[drawn], descending)
        if (batch.min_p[drawn] > 0.0).any():
            least = weights.amax(dim=1) * self._put(batch.min_p[drawn])
            weights.masked_fill_(weights < least[:, None], 0.0)
        return _invert(weights, self._put(batch.uniforms[drawn]))

    def _limit(self, x: Tensor, top_k: NDArray[np.int32]) -> _Descending | None:
        """Keep the top k of scores (R', V) and their equals, in place.

        Returns:
            The rows that are limited and their largest weights; None where sorting them afresh costs as little.
        """
        limited = np.flatnonzero((top_k > 0) & (top_k < x.shape[1]))
        if not limited.size:
            return None
        largest = int(top_k[limited].max())
        places, counts = self._put(limited), self._put(top_k[limited].astype(np.int64))
        part = x[places]
        values = part.topk(largest, dim=1).values
        least = values.gather(1, counts[:, None] - 1)
        x[places] = part.masked_fill_(part < least, -torch.inf)
        if largest > _LARGEST_TOP_K_TO_REUSE:
            return None
        return limited, values.masked_fill_(values < least, -torch.inf).exp_()

    def _keep_typical(self, weights: Tensor, typical_p: NDArray[np.float32]) -> None:
        """Keep the locally typical sets of weights (R', V), in place."""
        rows = np.flatnonzero(typical_p < 1.0)
        places, mass = self._put(rows), self._put(typical_p[rows])
        part = weights[places]
        probabilities = part.double()
        probabilities /= probabilities.sum(dim=1, keepdim=True)
        surprise = -probabilities.log()
        entropy = (probabilities * surprise).nan_to_num_(nan=0.0).sum(dim=1, keepdim=True)
        deviation = (surprise - entropy).abs_()
        ascending, order = deviation.sort(dim=1)
        reached = probabilities.gather(1, order).cumsum(dim=1)
        last = (reached < mass.double()[:, None]).sum(dim=1, keepdim=True).clamp_(max=part.shape[1] - 1)
        weights[places] = part.masked_fill_(deviation > ascending.gather(1, last), 0.0)

    def _keep_nucleus(self, weights: Tensor, top_p: NDArray[np.float32], descending: _Descending | None) -> None:
        """Keep the smallest sets of weights (R', V) that reach their shares top_p (R',), in place."""
        rows = np.flatnonzero(top_p < 1.0)
        if descending is not None:
            limited, values = descending
            short = np.isin(limited, rows)
            if short.any():
                self._cut(weights, limited[short], top_p, values[self._put(np.flatnonzero(short))])
            rows = np.setdiff1d(rows, limited)
        if rows.size:
            self._cut(weights, rows, top_p, weights[self._put(rows)].sort(dim=1, descending=True).values)

    def _cut(self, weights: Tensor, rows: NDArray[np.int64], top_p: NDArray[np.float32], descending: Tensor) -> None:
        """Keep the smallest sets of ``rows`` of weights (R', V), in place; of equals the lower token ids.

        Args:
            weights: Not negative.
            rows: Which rows to cut (n,).
            top_p: Shares (R',) of the sum of a row that are kept.
            descending: The largest weights (n, m) of ``rows``, sorted, then zeros: all there are but for equals of the
                last.
        """
        places = self._put(rows)
        part = weights[places]
        mass = self._put(top_p[rows]).double() * part.sum(dim=1, dtype=torch.float64)
        reached = descending.cumsum(dim=1, dtype=torch.float64)
        last = (reached < mass[:, None]).sum(dim=1, keepdim=True)
        # Past the end of what was sorted: equals of the last weight follow there, so it is the last one's again.
        edge = torch.minimum(last, (descending > 0.0).sum(dim=1, keepdim=True) - 1).clamp_(min=0)
        least = descending.gather(1, edge)
        above = torch.where(descending > least, descending, 0.0).sum(dim=1, dtype=torch.float64)
        needed = torch.where(
            (last == edge)[:, 0],
            last[:, 0] + 1 - (descending > least).sum(dim=1),
            ((mass - above) / least[:, 0].double()).ceil().nan_to_num_(nan=0.0).clamp_(max=part.shape[1]).long(),
        )
        equal = part == least
        spare = equal & (equal.cumsum(dim=1, dtype=torch.int32) > needed[:, None])
        weights[places] = part.masked_fill_(spare | (part < least), 0.0)

    def _logprobs(self, values: Tensor, queries: Sequence[LogprobQuery]) -> list[dict[int, tuple[float, int]]]:
        rows = self._put(np.array([query.row for query in queries], dtype=np.int64))
        chosen = self._put(np.array([[query.token_id or 0] for query in queries], dtype=np.int64))
        x = values[rows]
        ids = torch.arange(x.shape[1], device=self.device)
        peaks = x.amax(dim=1, keepdim=True)
        totals = peaks.double() + (x - peaks).exp_().sum(dim=1, keepdim=True, dtype=torch.float64).log()
        score = x.gather(1, chosen)
        ranks = 1 + ((x > score) | ((x == score) & (ids < chosen))).sum(dim=1, keepdim=True)
        top = min(max(query.top for query in queries), x.shape[1])
        best = _order_keys(x).topk(top, dim=1).indices
        numbers = torch.cat([x.gather(1, best).double() - totals, score.double() - totals], dim=1).cpu().numpy()
        integers = torch.cat([best, ranks], dim=1).cpu().numpy()
        return [
            {} if np.isnan(numbers[place]).any() else _answer(query, numbers[place], integers[place])
            for place, query in enumerate(queries)
        ]


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The tokens (R',) whose share of the cumulative weights (R', V) holds the uniform (R',): chunk, then token."""
    padding = -weights.shape[1] % _CHUNK
    chunks = torch.nn.functional.pad(weights, (0, padding)).view(weights.shape[0], -1, _CHUNK)
    totals = chunks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    targets = uniforms * totals[:, -1]
    chunk = _first_beyond(totals, targets)
    before = torch.where(chunk > 0, totals.gather(1, (chunk - 1).clamp_(min=0)[:, None])[:, 0], 0.0)
    within = chunks[torch.arange(chunk.numel(), device=chunk.device), chunk].cumsum(dim=1, dtype=torch.float64)
    return chunk * _CHUNK + _first_beyond(within, targets - before)


def _first_beyond(cumulative: Tensor, targets: Tensor) -> Tensor:
    """Per row (R', n) the first place that exceeds the target, at most the first that reaches the whole."""
    beyond = (cumulative <= targets[:, None]).sum(dim=1)
    reaching = (cumulative < cumulative[:, -1:]).sum(dim=1)
    return torch.minimum(beyond, reaching).clamp_(max=cumulative.shape[1] - 1)


def _order_keys(x: Tensor) -> Tensor:
    """Distinct integers (R, V) in the order of the logits (R, V), the lower id first among equals."""
    bits = (x + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) - torch.arange(x.shape[1], device=x.device)


def _answer(
    query: LogprobQuery, logprobs: NDArray[np.float64], integers: NDArray[np.int64]
) -> dict[int, tuple[float, int]]:
    """One query's answer from the best tokens' log-probabilities and ids, and the chosen one's with its rank."""
    pairs = zip(integers[: query.top][: integers.size - 1].tolist(), logprobs.tolist(), strict=False)
    result = {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(pairs, start=1)}
    if query.token_id is not None and query.token_id not in result:
        result[query.token_id] = (float(logprobs[-1]), int(integers[-1]))
    return result
