"""Storage of keys and values: pages of ``P`` tokens, per layer. Who owns which page is decided elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.attention._page_layout import PageLayout
from inference_pio.interfaces import DoesNotFitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec, RaggedBatch

# From this many tokens on, finding out that slots are consecutive costs less than scattering row by row on a CPU.
_SLICE_COPY_FROM = 64


class LayerPages:
    """Keys and values of one layer; a ``LayerKVCache``.

    Args:
        key_pages: (num_pages, P, K, D), contiguous; used, not copied.
        value_pages: The same for values.
        layout: Where the sequences of a batch lie; shared by the layers of a cache.
    """

    def __init__(self, key_pages: Tensor, value_pages: Tensor, layout: PageLayout) -> None:
        self.key_pages = key_pages
        self.value_pages = value_pages
        self.page_size = layout.page_size
        self._layout = layout
        self._keys = key_pages.flatten(0, 1)  # (num_pages * P, K, D), views
        self._values = value_pages.flatten(0, 1)
        self._row_shape = tuple(key_pages.shape[2:])

    def write(self, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
        """Store ``keys`` and ``values`` (N, K, D) at ``slot_mapping`` (N,), in place, in the dtype of the cache.

        They are stored without their history: no gradient flows through a cache.

        Raises:
            ValueError: The shapes do not fit the cache or each other.
            IndexError: A slot is outside the cache (on CPU; on CUDA the device reports it later).
        """
        count = slot_mapping.shape[0]
        expected = (count, *self._row_shape)
        if keys.shape != expected or values.shape != expected:
            shapes = f"{tuple(keys.shape)} and {tuple(values.shape)}"
            raise ValueError(f"keys and values must have shape {expected}, got {shapes}")
        start = _consecutive_start(slot_mapping) if count >= _SLICE_COPY_FROM else None
        _store(self._keys, keys, slot_mapping, start)
        _store(self._values, values, slot_mapping, start)

    def read(self, batch: RaggedBatch, index: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values of sequence ``index`` from position ``start`` to its end, each (S - start, K, D).

        A view where the sequence's pages lie side by side, a gathered copy where they do not: read only. ``batch`` must
        not be changed in place between reads: the layout found at the first read serves all layers.

        Raises:
            ValueError: ``start`` is beyond the sequence, or its block table names a page outside the cache.
        """
        length = batch.seq_lens[index]
        if not 0 <= start <= length:
            raise ValueError(f"start must be between 0 and the sequence's length {length}, got {start}")
        first_slot = self._layout.first_slots(batch)[index]
        if first_slot is not None:
            rows = slice(first_slot + start, first_slot + length)
            return self._keys[rows], self._values[rows]
        first_page = start // self.page_size
        last_page = -(-length // self.page_size)
        pages = batch.block_tables[index, first_page:last_page]
        rows = slice(start - first_page * self.page_size, length - first_page * self.page_size)
        keys = self.key_pages.index_select(0, pages).flatten(0, 1)
        values = self.value_pages.index_select(0, pages).flatten(0, 1)
        return keys[rows], values[rows]


class PagedKVCache:
    """Pages of a few tokens each, handed to sequences as they grow (Kwon et al. 2023, arXiv:2309.06180); a ``KVCache``.

    Args:
        specs: One entry per layer; heads and head dims may differ between layers.
        num_pages: Pages per layer.
        page_size: ``P``, in tokens.
        dtype: Storage dtype; keys and values are converted when written.
        device: Where the storage lies.

    Raises:
        ValueError: ``num_pages`` or ``page_size`` is below 1.
        DoesNotFitError: The device has no room for the storage.
    """

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        *,
        num_pages: int,
        page_size: int = 16,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"num_pages ({num_pages}) and page_size ({page_size}) must be at least 1")
        self._layout = PageLayout(num_pages, page_size)
        self._layers = _allocate(specs, self._layout, dtype, torch.device(device))

    @property
    def num_pages(self) -> int:
        """Pages per layer."""
        return self._layout.num_pages

    @property
    def page_size(self) -> int:
        """``P``, in tokens."""
        return self._layout.page_size

    @property
    def nbytes(self) -> int:
        """Size of the storage of all layers, in bytes: address space; see the module's README on what is committed."""
        return sum(layer.key_pages.nbytes + layer.value_pages.nbytes for layer in self._layers)

    def layer(self, index: int) -> LayerPages:
        """The cache of layer ``index``."""
        return self._layers[index]


class ContiguousKVCache:
    """One page of ``max_length`` tokens per sequence, so that every read is a view; a ``KVCache``.

    The storage is not initialised: a system that commits memory when it is first written (Linux, macOS) charges only
    for the tokens that were stored, so a large ``max_length`` is cheap on a CPU. CUDA charges for all of it.

    Args:
        specs: One entry per layer; heads and head dims may differ between layers.
        num_sequences: Sequences that can live at the same time; sequence slot ``b`` is page ``b``.
        max_length: Tokens per sequence, the page size.
        dtype: Storage dtype; keys and values are converted when written.
        device: Where the storage lies.

    Raises:
        ValueError: ``num_sequences`` or ``max_length`` is below 1.
        DoesNotFitError: The device has no room for the storage.
    """

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        *,
        num_sequences: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_sequences < 1 or max_length < 1:
            raise ValueError(f"num_sequences ({num_sequences}) and max_length ({max_length}) must be at least 1")
        self._pages = PagedKVCache(specs, num_pages=num_sequences, page_size=max_length, dtype=dtype, device=device)

    @property
    def num_pages(self) -> int:
        """Sequences that can live at the same time."""
        return self._pages.num_pages

    @property
    def page_size(self) -> int:
        """Tokens per sequence."""
        return self._pages.page_size

    @property
    def nbytes(self) -> int:
        """Size of the storage of all layers, in bytes: address space, not what is committed."""
        return self._pages.nbytes

    def layer(self, index: int) -> LayerPages:
        """The cache of layer ``index``."""
        return self._pages.layer(index)


def kv_bytes(specs: Sequence[AttentionSpec], tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of ``tokens`` tokens over all layers.

    A layer with a sliding window counts in full: both caches keep every token of a sequence.
    """
    return 2 * tokens * dtype.itemsize * sum(spec.num_kv_heads * spec.head_dim for spec in specs)


def _allocate(
    specs: Sequence[AttentionSpec], layout: PageLayout, dtype: torch.dtype, device: torch.device
) -> tuple[LayerPages, ...]:
    layers = []
    for spec in specs:
        shape = (layout.num_pages, layout.page_size, spec.num_kv_heads, spec.head_dim)
        try:
            # An inference tensor could not be written outside inference mode, so the mode of the maker must not matter.
            with torch.inference_mode(mode=False):
                keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
                layers.append(LayerPages(keys, values, layout))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            needed = kv_bytes(specs, layout.num_pages * layout.page_size, dtype)
            raise DoesNotFitError(
                f"a KV cache of {needed:,} bytes does not fit on {device}",
                hint="lower the context length or the number of sequences",
            ) from error
    return tuple(layers)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch.OutOfMemoryError is raised by accelerators; the CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _consecutive_start(slots: Tensor) -> int | None:
    """First of the slots if they are consecutive; on CUDA, where asking would wait for the device, always None."""
    if slots.device.type != "cpu":
        return None
    start = int(slots[0])
    return start if start >= 0 and bool((slots[1:] - slots[:-1] == 1).all()) else None


def _store(target: Tensor, rows: Tensor, slots: Tensor, start: int | None) -> None:
    """Copy ``rows`` to ``target[slots]``; ``start`` is the first slot if they are known to be consecutive."""
    if rows.requires_grad:
        rows = rows.detach()
    if start is not None and start + rows.shape[0] <= target.shape[0]:
        target[start : start + rows.shape[0]] = rows
    else:
        target.index_copy_(0, slots, rows if rows.dtype == target.dtype else rows.to(target.dtype))
