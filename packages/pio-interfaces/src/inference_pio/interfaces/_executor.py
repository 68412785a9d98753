"""The seam between the engine, which works on integers and NumPy arrays, and what computes the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One step of the engine: all scheduled tokens of all sequences, without padding.

    Attributes:
        token_ids: int64 (N,).
        positions: int64 (N,), position of each token in its sequence.
        query_starts: int32 (B+1,), offsets of the sequences in the ragged batch.
        seq_lens: int32 (B,), tokens of each sequence visible after this step.
        block_tables: int32 (B, M), page numbers in order; unused entries are -1.
        slot_mapping: int64 (N,), ``page * page_size + offset`` of each token.
        logit_rows: int64 (R,), the rows of the ragged batch whose logits are wanted.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    query_starts: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    slot_mapping: NDArray[np.int64]
    logit_rows: NDArray[np.int64]


@runtime_checkable
class Executor(Protocol):
    """Owns the weights, the cache storage and the model step on one device."""

    @property
    def name(self) -> str:
        """``"torch"``, ``"native"``, ..."""

    @property
    def num_pages(self) -> int:
        """Pages of the cache, that the engine's bookkeeping may hand out."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Run the model over ``batch``, extending the cache in place.

        Returns:
            Logits float32 (R, V), R rows in the order of ``batch.logit_rows``; valid until the next step.
        """

    def close(self) -> None:
        """Free weights and cache. Harmless when called twice."""
