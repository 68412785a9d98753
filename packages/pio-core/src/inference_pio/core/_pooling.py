"""From the hidden states of a prompt, as they come, to its embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference_pio.interfaces import PoolingParams


class Pool:
    """The embedding of one prompt while it is read. Keeps one vector, however long the prompt is.

    Args:
        params: How to pool.
        num_tokens: Tokens of the prompt, at least 1.
        hidden_size: ``E``.
    """

    def __init__(self, params: PoolingParams, num_tokens: int, hidden_size: int) -> None:
        self._params = params
        self._num_tokens = num_tokens
        self._sum = np.zeros(hidden_size, dtype=np.float64)
        self._next = 0 if params.pooling == "mean" else num_tokens - 1  # position of the first row not taken yet

    @property
    def reads_all(self) -> bool:
        """Whether every position counts, so that none can be skipped because the cache has its keys and values."""
        return self._params.pooling == "mean"

    @property
    def whole(self) -> bool:
        """Whether all rows have come."""
        return self._next == self._num_tokens

    def wanted(self, past: int, count: int) -> range:
        """Positions whose rows are still missing among the ``count`` after ``past``.

        A prompt that had to give its pages back is read again; what was pooled before is not pooled twice.
        """
        end = past + count
        return range(min(max(past, self._next), end), end)

    def take(self, rows: NDArray[np.float32]) -> None:
        """The hidden states (rows, E) of what :meth:`wanted` named, in order.

        They are added one by one in float64, so that how a prompt was cut into chunks does not show.
        """
        for row in rows:
            self._sum += row
        self._next += len(rows)

    def embedding(self) -> NDArray[np.float32]:
        """The embedding, (E,), once it is whole."""
        vector = self._sum / self._num_tokens if self._params.pooling == "mean" else self._sum
        length = np.linalg.norm(vector)
        if self._params.normalize and length > 0:
            vector = vector / length
        return vector.astype(np.float32)
