"""The seam between the engine, which works on integers and NumPy arrays, and what computes the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.interfaces._cache import CacheGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTables:
    """Where the sequences of a step lie in the pages of one group of layers.

    Attributes:
        block_tables: int32 (B, M), page numbers in order; unused entries, and pages that a window has left behind, are
            -1. For a group that keeps states (B, 1): the page of each sequence's state.
        slot_mapping: int64 (N,), ``page * page_size + offset`` of each token; (0,) for a group that keeps states.
    """

    block_tables: NDArray[np.int32]
    slot_mapping: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One step of the engine: all scheduled tokens of all sequences, without padding.

    Attributes:
        token_ids: int64 (N,).
        positions: int64 (N,), position of each token in its sequence.
        query_starts: int32 (B+1,), offsets of the sequences in the ragged batch.
        seq_lens: int32 (B,), tokens of each sequence visible after this step.
        block_tables: int32 (B, M), as in :class:`GroupTables`, of the first group.
        slot_mapping: int64 (N,), as in :class:`GroupTables`, of the first group.
        logit_rows: int64 (R,), the rows of the ragged batch whose logits are wanted.
        others: The tables of the other groups; empty where one group holds all layers.
        hidden_rows: int64, the rows whose hidden states are wanted, of a :class:`HiddenStateExecutor` only; None for
            none.
        largest_wanted: int32 (R,), how many of the largest logits of each row are wanted, with their equals: an
            executor may give ``-inf`` instead of any other. 0 wants all; None wants all of all rows.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    query_starts: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    slot_mapping: NDArray[np.int64]
    logit_rows: NDArray[np.int64]
    others: tuple[GroupTables, ...] = ()
    hidden_rows: NDArray[np.int64] | None = None
    largest_wanted: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitEdits:
    """Single logits to be changed: entry ``m`` concerns token ``token_ids[m]`` of row ``rows[m]``.

    Attributes:
        rows: int64 (M,), indices into the rows that are sampled.
        token_ids: int64 (M,). No pair of row and token comes twice.
        values: float32 (M,).
    """

    rows: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """How to choose one token for each of ``R`` rows, as arrays. Applied in the order of the attributes.

    Attributes:
        rows: int64 (R,), row of the step's logits that each draw is made from; a row may be drawn from several times.
        bias: Added; None changes nothing.
        repetition: Positive logits are divided, others multiplied by the value; None changes nothing.
        penalties: Added after that, ``-inf`` to forbid a token; None changes nothing.
        masks: int32 (R, ceil(V / 32)), bit ``i % 32`` of word ``i // 32`` set if token ``i`` is allowed; None allows
            all.
        temperature: float32 (R,), divides; 0 takes the most likely token (the first of equals) and ignores what
            follows.
        top_k: int32 (R,), keep the k most likely tokens and their equals; 0 keeps all.
        typical_p: float32 (R,), keep the locally typical set (Meister et al. 2023, arXiv:2202.00666); 1 keeps all.
        top_p: float32 (R,), keep the smallest set whose probability reaches this; 1 keeps all.
        min_p: float32 (R,), keep tokens at least this likely relative to the most likely one; 0 keeps all.
        uniforms: float64 (R,) in [0, 1): the token whose share of the cumulative probability, in order of token ids,
            contains it is chosen. Made on the host, so a device chooses as the host does, to rounding.
    """

    rows: NDArray[np.int64]
    bias: LogitEdits | None
    repetition: LogitEdits | None
    penalties: LogitEdits | None
    masks: NDArray[np.int32] | None
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]
    typical_p: NDArray[np.float32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    uniforms: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LogprobQuery:
    """Which log-probabilities of one row are wanted.

    Attributes:
        row: Row of the step's logits.
        token_id: A token whose log-probability is wanted in any case, or None.
        top: How many of the most likely tokens besides.
    """

    row: int
    token_id: int | None
    top: int


@runtime_checkable
class Sampler(Protocol):
    """Chooses tokens where the logits are."""

    def sample(self, logits: object, batch: SamplingBatch) -> NDArray[np.int64]:
        """The chosen token of each row, (R,); the logits are not changed.

        A row whose logits hold no finite value, or a NaN, gives -1: the model failed there, or nothing was allowed.
        """

    def logprobs(self, logits: object, queries: Sequence[LogprobQuery]) -> list[dict[int, tuple[float, int]]]:
        """Per query the natural log-probability under the model and the rank (from 1) of tokens, most likely first."""


@runtime_checkable
class Executor(Protocol):
    """Owns the weights, the cache storage and the model step on one device."""

    @property
    def name(self) -> str:
        """``"torch"``, ``"native"``, ..."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """The pages that the engine's bookkeeping may hand out, by group of layers."""

    @property
    def sampler(self) -> Sampler:
        """What reads the logits of :meth:`step`."""

    def step(self, batch: StepBatch) -> object:
        """Run the model over ``batch``, extending the cache in place.

        Returns:
            Logits float32 (R, V) in the order of ``batch.logit_rows``, on the host or on the device, as
            :attr:`sampler` reads them; valid until the next step.
        """

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group``, as if one after the other in this order."""

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        """Copy ``pages`` of the device to ``host_pages`` of host memory."""

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        """Copy ``host_pages`` of host memory to ``pages`` of the device."""

    def close(self) -> None:
        """Free weights and cache. Harmless when called twice."""


@runtime_checkable
class HiddenStateExecutor(Executor, Protocol):
    """An executor that also hands out what the head reads; optional, and what embeddings are made from."""

    @property
    def hidden_size(self) -> int:
        """``E``."""

    def hidden_states(self) -> NDArray[np.float32]:
        """The rows that ``hidden_rows`` of the latest step asked for, in that order, on the host; until the next step.

        Returns:
            Hidden states after the final norm, float32 (rows, E); (0, E) where none were asked for.
        """
