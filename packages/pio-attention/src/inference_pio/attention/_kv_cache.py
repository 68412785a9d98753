"""The caches: what the layers of a model keep, in pages. Who owns which page is decided elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.attention._page_storage import PageStorage, cache_spec, token_bytes
from inference_pio.interfaces import LayerGroup, StateSpec, group_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.attention._layer_pages import LayerPages
    from inference_pio.attention._layer_states import LayerStates
    from inference_pio.interfaces import AttentionSpec, CacheGroup, LayerCacheSpec


class PagedKVCache:
    """Pages of a few tokens each, handed to sequences as they grow (Kwon et al. 2023, arXiv:2309.06180); a ``KVCache``.

    Layers that keep the same positions form a group, by ``group_layers`` of ``pio-interfaces``: layers that keep every
    token, layers of each window size, layers that keep a state. Pages are numbered per group.

    Args:
        specs: One entry per layer, what it keeps; an ``AttentionSpec`` keeps its keys and values.
        num_pages: Pages of every group, or of each.
        page_size: ``P``, in tokens; a page of states holds one sequence's.
        dtype: Storage dtype; keys and values are converted when written. ``torch.int8`` stores them with a scale per
            token and KV head, off by at most 1/254 of a vector's largest element. States are float32.
        device: Where the storage lies.
        num_host_pages: Pages in host memory of every group, or of each, for ``swap_out``; pinned beside CUDA.

    Raises:
        ValueError: ``num_pages`` or ``page_size`` is below 1, there are not as many counts as groups, or the dtype is
            neither floating-point nor int8.
        DoesNotFitError: The device has no room for the storage.
    """

    def __init__(
        self,
        specs: Sequence[AttentionSpec | LayerCacheSpec],
        *,
        num_pages: int | Sequence[int],
        page_size: int = 16,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        num_host_pages: int | Sequence[int] = 0,
    ) -> None:
        kept = [cache_spec(spec) for spec in specs]
        groups = group_layers(kept)
        counts = _per_group("num_pages", num_pages, len(groups))
        if min(counts, default=1) < 1 or page_size < 1:
            raise ValueError(f"num_pages ({num_pages}) and page_size ({page_size}) must be at least 1")
        self._storage = PageStorage(
            kept,
            groups,
            num_pages=counts,
            num_host_pages=_per_group("num_host_pages", num_host_pages, len(groups)),
            page_size=page_size,
            dtype=dtype,
            device=torch.device(device),
        )

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The groups of layers and their pages."""
        return self._storage.groups

    @property
    def num_pages(self) -> int:
        """Pages of the first group."""
        return self.groups[0].num_pages

    @property
    def page_size(self) -> int:
        """``P``, in tokens."""
        return self._storage.page_size

    @property
    def nbytes(self) -> int:
        """Size of the storage of all layers, in bytes: address space; see the module's README on what is committed."""
        return self._storage.nbytes

    @property
    def host_nbytes(self) -> int:
        """Size of the storage in host memory beside it, in bytes."""
        return self._storage.host_nbytes

    def layer(self, index: int) -> LayerPages:
        """Keys and values of layer ``index``.

        Raises:
            ValueError: The layer keeps a state.
        """
        return self._storage.layer(index)

    def state(self, index: int) -> LayerStates:
        """The state of layer ``index``.

        Raises:
            ValueError: The layer keeps keys and values.
        """
        return self._storage.state(index)

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group`` in every layer of it, as if one after the other in this order.

        Raises:
            ValueError: There are not as many sources as targets, or a page is outside the group.
        """
        self._storage.copy_pages(group, sources, targets)

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        """Copy ``pages`` of the device to ``host_pages`` of host memory; on CUDA in order of the current stream.

        Raises:
            ValueError: There are not as many pages as host pages, or a page is outside the group.
        """
        self._storage.swap_out(group, pages, host_pages)

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        """Copy ``host_pages`` of host memory to ``pages`` of the device; on CUDA in order of the current stream.

        Raises:
            ValueError: There are not as many pages as host pages, or a page is outside the group.
        """
        self._storage.swap_in(group, host_pages, pages)


class ContiguousKVCache:
    """One page of ``max_length`` tokens per sequence, so that every read is a view; a ``KVCache``.

    A page belongs to a sequence as a whole, windows give nothing back, so all layers form one group, states included.

    The storage is not initialised: a system that commits memory when it is first written (Linux, macOS) charges only
    for the tokens that were stored, so a large ``max_length`` is cheap on a CPU. CUDA charges for all of it.

    Args:
        specs: One entry per layer, what it keeps; an ``AttentionSpec`` keeps its keys and values.
        num_sequences: Sequences that can live at the same time; sequence slot ``b`` is page ``b``.
        max_length: Tokens per sequence, the page size.
        dtype: Storage dtype, as of :class:`PagedKVCache`.
        device: Where the storage lies.

    Raises:
        ValueError: ``num_sequences`` or ``max_length`` is below 1, or the dtype is neither floating-point nor int8.
        DoesNotFitError: The device has no room for the storage.
    """

    def __init__(
        self,
        specs: Sequence[AttentionSpec | LayerCacheSpec],
        *,
        num_sequences: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_sequences < 1 or max_length < 1:
            raise ValueError(f"num_sequences ({num_sequences}) and max_length ({max_length}) must be at least 1")
        kept = [cache_spec(spec) for spec in specs]
        only_states = all(isinstance(spec, StateSpec) for spec in kept)
        group = LayerGroup(kind="state" if only_states else "full", window=None, layers=tuple(range(len(kept))))
        self._storage = PageStorage(
            kept,
            [group],
            num_pages=[num_sequences],
            num_host_pages=[0],
            page_size=max_length,
            dtype=dtype,
            device=torch.device(device),
        )

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The one group of all layers."""
        return self._storage.groups

    @property
    def num_pages(self) -> int:
        """Sequences that can live at the same time."""
        return self.groups[0].num_pages

    @property
    def page_size(self) -> int:
        """Tokens per sequence."""
        return self._storage.page_size

    @property
    def nbytes(self) -> int:
        """Size of the storage of all layers, in bytes: address space, not what is committed."""
        return self._storage.nbytes

    def layer(self, index: int) -> LayerPages:
        """Keys and values of layer ``index``.

        Raises:
            ValueError: The layer keeps a state.
        """
        return self._storage.layer(index)

    def state(self, index: int) -> LayerStates:
        """The state of layer ``index``.

        Raises:
            ValueError: The layer keeps keys and values.
        """
        return self._storage.state(index)

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole sequences in every layer, as if one after the other in this order.

        Raises:
            ValueError: There are not as many sources as targets, or a page is outside the group.
        """
        self._storage.copy_pages(group, sources, targets)

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        """There are no host pages: anything but nothing is refused.

        Raises:
            ValueError: A page is named.
        """
        self._storage.swap_out(group, pages, host_pages)

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        """There are no host pages: anything but nothing is refused.

        Raises:
            ValueError: A page is named.
        """
        self._storage.swap_in(group, host_pages, pages)


def kv_bytes(specs: Sequence[AttentionSpec | LayerCacheSpec], tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of ``tokens`` tokens over all layers, the scales of int8 included.

    A layer with a sliding window counts in full, a layer that keeps a state not at all.
    """
    return tokens * sum(token_bytes(cache_spec(spec), dtype) for spec in specs)


def _per_group(name: str, given: int | Sequence[int], groups: int) -> tuple[int, ...]:
    counts = (given,) * groups if isinstance(given, int) else tuple(given)
    if len(counts) != groups:
        raise ValueError(f"{name} has {len(counts)} entries, the layers form {groups} groups")
    return counts
