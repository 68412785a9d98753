"""Attention over ragged batches, and the cache that holds keys and values.

Dimensions: ``N`` tokens of the ragged batch, ``B`` sequences, ``H`` query heads, ``K`` KV heads, ``D`` head dim, ``P``
page size, ``M`` pages in a block table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inference_pio.interfaces._cache import CacheGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What one attention layer computes.

    Attributes:
        num_heads: ``H``, a multiple of ``num_kv_heads``.
        num_kv_heads: ``K``; ``K == H`` is MHA, ``K == 1`` MQA, in between GQA.
        head_dim: ``D``.
        scale: Factor on the scores; None means ``head_dim ** -0.5``.
        causal: Whether a query sees only keys at its own position and before.
        window: Sliding window: a query at position ``p`` sees keys at ``p - window + 1 .. p`` and, without ``causal``,
            also up to ``p + window - 1``. None sees all.
        value_dim: Size of a value and of an output head where it is not ``head_dim`` (latent attention); None is ``D``.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float | None = None
    causal: bool = True
    window: int | None = None
    value_dim: int | None = None

    def __post_init__(self) -> None:
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads != 0:
            msg = f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            raise ValueError(msg)
        if self.window is not None and self.window < 1:
            msg = f"window must be at least 1, got {self.window}"
            raise ValueError(msg)

    @property
    def softmax_scale(self) -> float:
        """The factor on the scores, resolved."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def output_dim(self) -> int:
        """Size of an output head: ``value_dim``, resolved."""
        return self.head_dim if self.value_dim is None else self.value_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedBatch:
    """The layout of one step: all scheduled tokens of all sequences, without padding.

    The last ``query_lens[b]`` of the ``seq_lens[b]`` positions of sequence ``b`` are this step's queries. The
    tensors do not change while the batch is in use.

    Attributes:
        query_lens: Tokens of each sequence in this step; on the host, ``B`` entries, each at least 1.
        seq_lens: Tokens of each sequence visible after this step; on the host, ``B`` entries.
        query_starts: Offsets of the sequences in the ragged batch, int32 (B+1,).
        block_tables: Page numbers of each sequence in order, int32 (B, M); unused entries, and pages that a window has
            left behind, are -1.
        slot_mapping: Where each token's key and value go, ``page * P + offset``, int64 (N,).
        others: The same step as the other groups of layers see it; empty where one group holds all layers.
    """

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    query_starts: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    others: tuple[RaggedBatch, ...] = ()

    def group(self, index: int) -> RaggedBatch:
        """The step as group ``index`` of the cache sees it: its block tables, its slots."""
        return self if index == 0 else self.others[index - 1]


@runtime_checkable
class LayerKVCache(Protocol):
    """Keys and values of one layer."""

    @property
    def group(self) -> int:
        """Index of the group that this layer belongs to: whose view of a step its reads and writes take."""

    @property
    def page_size(self) -> int:
        """``P``, in tokens."""

    @property
    def key_pages(self) -> Tensor:
        """(num_pages, P, K, D), the storage itself."""

    @property
    def value_pages(self) -> Tensor:
        """(num_pages, P, K, D), the storage itself."""

    def write(self, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
        """Store ``keys`` and ``values`` (N, K, D) at ``slot_mapping`` (N,), in place."""

    def read(self, batch: RaggedBatch, index: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values of sequence ``index`` from position ``start`` to its end, each (S - start, K, D).

        A view where the sequence's pages lie side by side, a copy where they do not: read only.
        """


@runtime_checkable
class LayerStateCache(Protocol):
    """The recurrent state of one layer."""

    @property
    def group(self) -> int:
        """Index of the group that this layer belongs to."""

    def read(self, batch: RaggedBatch) -> tuple[Tensor, ...]:
        """The state of each sequence before this step, float32 ``(B, *shape)`` each; zeros where one starts here."""

    def write(self, batch: RaggedBatch, states: tuple[Tensor, ...]) -> None:
        """Store the state of each sequence after this step, in place."""


@runtime_checkable
class KVCache(Protocol):
    """Storage of what the layers of a model keep. Who owns which page is decided elsewhere, without torch."""

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The groups of layers and their pages."""

    @property
    def num_pages(self) -> int:
        """Pages of the first group."""

    @property
    def page_size(self) -> int:
        """``P``, in tokens."""

    @property
    def nbytes(self) -> int:
        """Size of the storage of all layers, in bytes."""

    def layer(self, index: int) -> LayerKVCache:
        """Keys and values of layer ``index``.

        Raises:
            ValueError: The layer keeps a state.
        """

    def state(self, index: int) -> LayerStateCache:
        """The state of layer ``index``.

        Raises:
            ValueError: The layer keeps keys and values.
        """

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group`` in every layer of it, as if one after the other in this order."""

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        """Copy ``pages`` of the device to ``host_pages`` of host memory."""

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        """Copy ``host_pages`` of host memory to ``pages`` of the device."""


@runtime_checkable
class AttentionBackend(Protocol):
    """One way to compute attention. Stateless: one instance serves every layer."""

    @property
    def name(self) -> str:
        """Registered name, such as ``"sdpa"``."""

    @property
    def page_size_multiple(self) -> int:
        """The page size of a cache that it reads must be a multiple of this many tokens."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        *,
        query_lens: tuple[int, ...],
        key_lens: tuple[int, ...],
    ) -> Tensor:
        """Attention of packed sequences without a cache.

        Args:
            q: Queries (Nq, H, D), the sequences one after the other.
            k: Keys (Nk, K, D).
            v: Values (Nk, K, Dv).
            spec: What to compute.
            query_lens: Queries per sequence. With ``spec.causal`` the last query is at the position of the last key.
            key_lens: Keys per sequence.

        Returns:
            (Nq, H, Dv) in the dtype of ``q``, ``Dv = spec.output_dim``; zeros for a query that sees no key.
        """

    def attend_cached(self, q: Tensor, cache: LayerKVCache, batch: RaggedBatch, spec: AttentionSpec) -> Tensor:
        """Attention of a step's queries over the cache, into which this step's keys were already written.

        Args:
            q: Queries (N, H, D).
            cache: Keys and values of this layer; not changed.
            batch: Layout of the step.
            spec: What to compute.

        Returns:
            (N, H, Dv) in the dtype of ``q``, ``Dv = spec.output_dim``.
        """
