"""Keys and values of one layer, in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.attention._page_layout import PageLayout
    from inference_pio.attention._rows import Rows
    from inference_pio.interfaces import RaggedBatch

# From this many tokens on, finding out that slots are consecutive costs less than scattering row by row on a CPU.
_SLICE_COPY_FROM = 64


class LayerPages:
    """Keys and values of one layer; a ``LayerKVCache``.

    Args:
        keys: The rows of the keys.
        values: The rows of the values; None where a value is the first ``value_dim`` elements of its key.
        value_dim: Size of a value.
        layout: Where the sequences of a batch lie; shared by the layers of a group.
        group: Index of the group.
    """

    def __init__(self, keys: Rows, values: Rows | None, *, value_dim: int, layout: PageLayout, group: int) -> None:
        self.group = group
        self.layout = layout
        self.page_size = layout.page_size
        self.value_dim = value_dim
        self.key_pages = keys.pages
        self.value_pages = keys.pages[..., :value_dim] if values is None else values.pages
        self._keys = keys
        self._values = values
        self._heads = tuple(keys.pages.shape[2:3])
        self._key_shape = tuple(keys.pages.shape[2:])

    @property
    def shared(self) -> bool:
        """Whether values are the leading elements of keys, and so stored once (latent attention)."""
        return self._values is None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All storage, each (num_pages, ...)."""
        return self._keys.tensors if self._values is None else (*self._keys.tensors, *self._values.tensors)

    def write(self, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
        """Store ``keys`` and ``values`` (N, K, D) at ``slot_mapping`` (N,), in place, in the dtype of the cache.

        They are stored without their history: no gradient flows through a cache. Values that are the leading elements
        of their keys are not looked at.

        Raises:
            ValueError: The shapes do not fit the cache or each other.
            IndexError: A slot is outside the cache (on CPU; on CUDA the device reports it later).
        """
        count = slot_mapping.shape[0]
        expected = (count, *self._key_shape)
        expected_values = (count, *self._heads, self.value_dim)
        if keys.shape != expected or values.shape != expected_values:
            shapes = f"{tuple(keys.shape)} and {tuple(values.shape)}"
            wanted = f"{expected}" if expected == expected_values else f"{expected} and {expected_values}"
            raise ValueError(f"keys and values must have shape {wanted}, got {shapes}")
        start = _consecutive_start(slot_mapping) if count >= _SLICE_COPY_FROM else None
        self._keys.write(keys, slot_mapping, start)
        if self._values is not None:
            self._values.write(values, slot_mapping, start)

    def read(self, batch: RaggedBatch, index: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Keys (S - start, K, D) and values (S - start, K, Dv) of sequence ``index`` from ``start`` to its end.

        A view where the sequence's pages from ``start`` on lie side by side, a gathered copy where they do not or where
        the cache is quantised: read only. Pages before ``start`` may have been given back. ``batch`` must not be
        changed in place between reads: the layout found at the first read serves all layers.

        Raises:
            ValueError: ``start`` is beyond the sequence, or its block table names a page outside the cache.
        """
        length = batch.seq_lens[index]
        if not 0 <= start <= length:
            raise ValueError(f"start must be between 0 and the sequence's length {length}, got {start}")
        first_slot = self.layout.first_slot(batch, index, start)
        if first_slot is not None:
            return self.read_slots(first_slot + start, first_slot + length)
        first_page = start // self.page_size
        keys, values = self.gather_pages(batch.block_tables[index, first_page : -(-length // self.page_size)])
        rows = slice(start - first_page * self.page_size, length - first_page * self.page_size)
        return keys[rows], values[rows]

    def read_slots(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of slots ``begin .. end - 1``: views, or copies in float32 where the cache is quantised."""
        keys = self._keys.read(begin, end)
        return keys, keys[..., : self.value_dim] if self._values is None else self._values.read(begin, end)

    def gather_pages(self, pages: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values of these pages, one after the other, each (len(pages) * size, K, ...).

        ``size`` is ``P``, or a divisor of it that numbers smaller pages alike.
        """
        size = self.page_size if size is None else size
        keys = self._keys.gather(pages, size)
        return keys, keys[..., : self.value_dim] if self._values is None else self._values.gather(pages, size)

    def gather_slots(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values of these slots, each (len(slots), K, ...)."""
        keys = self._keys.gather_slots(slots)
        return keys, keys[..., : self.value_dim] if self._values is None else self._values.gather_slots(slots)


def _consecutive_start(slots: Tensor) -> int | None:
    """First of the slots if they are consecutive; on CUDA, where asking would wait for the device, always None."""
    if slots.device.type != "cpu":
        return None
    start = int(slots[0])
    return start if start >= 0 and bool((slots[1:] - slots[:-1] == 1).all()) else None
