"""The sampler of the native executor: the host sampler's arithmetic, with rows drawn side by side on its threads."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.core._host_sampler import HostSampler, RowEdits, checked_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import LogprobQuery, SamplingBatch
    from inference_pio.kernels import Runtime


class NativeSampler:
    """The host sampler with its choice made natively; chooses the same tokens.

    Single logits are changed here, on copies of the rows that they concern. Holds scratch memory; not to be shared
    between threads.

    Args:
        runtime: On whose threads rows are drawn.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._host = HostSampler()

    def sample(self, logits: object, batch: SamplingBatch) -> NDArray[np.int64]:
        """The chosen token of each row, (R,); see :class:`inference_pio.interfaces.Sampler`.

        Raises:
            ValueError: ``logits`` is no float32 array (R, V).
        """
        values = checked_logits(logits)
        edits = RowEdits(dataclasses.replace(batch, masks=None))
        if not edits.concerned.any():
            return self._runtime.sample(values, batch)
        chosen = np.empty(batch.rows.size, dtype=np.int64)
        plain, edited = np.flatnonzero(~edits.concerned), np.flatnonzero(edits.concerned)
        if plain.size:
            chosen[plain] = self._runtime.sample(values, _part(batch, plain, batch.rows[plain]))
        rows = values[batch.rows[edited]]
        with np.errstate(over="ignore", invalid="ignore"):  # extreme rows overflow to infinities, as they should
            for row, index in zip(rows, edited.tolist(), strict=True):
                edits.apply(index, row)
        chosen[edited] = self._runtime.sample(rows, _part(batch, edited, np.arange(edited.size)))
        return chosen

    def logprobs(self, logits: object, queries: Sequence[LogprobQuery]) -> list[dict[int, tuple[float, int]]]:
        """Per query log-probabilities and ranks; see :class:`inference_pio.interfaces.Sampler`.

        Raises:
            ValueError: ``logits`` is no float32 array (R, V).
        """
        return self._host.logprobs(logits, queries)


def _part(batch: SamplingBatch, draws: NDArray[np.int64], rows: NDArray[np.int64]) -> SamplingBatch:
    """The ``draws`` of ``batch``, from ``rows`` of their logits, which are edited already."""
    return dataclasses.replace(
        batch,
        rows=rows,
        bias=None,
        repetition=None,
        penalties=None,
        masks=None if batch.masks is None else batch.masks[draws],
        temperature=batch.temperature[draws],
        top_k=batch.top_k[draws],
        typical_p=batch.typical_p[draws],
        top_p=batch.top_p[draws],
        min_p=batch.min_p[draws],
        uniforms=batch.uniforms[draws],
    )
