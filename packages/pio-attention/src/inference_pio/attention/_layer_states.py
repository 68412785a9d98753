"""The recurrent state of one layer, a page per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import RaggedBatch


class StateLayout:
    """The state pages of a batch's sequences. Keeps those of the last batch, since every layer asks.

    Args:
        num_pages: Pages of the group.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._last: tuple[RaggedBatch, Tensor, Tensor | None] | None = None

    def find(self, batch: RaggedBatch) -> tuple[Tensor, Tensor | None]:
        """The page of each sequence, int64 (B,), and the indices of those that start in this step, None if none does.

        Raises:
            ValueError: A block table names no page or one outside the group.
        """
        if self._last is None or self._last[0] is not batch:
            self._last = (batch, self._pages(batch), self._fresh(batch))
        return self._last[1:]

    def _pages(self, batch: RaggedBatch) -> Tensor:
        if not batch.query_lens:
            return batch.block_tables.new_empty(0, dtype=torch.int64)
        pages = batch.block_tables[:, 0].long()
        for index, page in enumerate(pages.tolist()):
            if not 0 <= page < self.num_pages:
                raise ValueError(f"sequence {index}: page {page} is outside the {self.num_pages} pages of states")
        return pages

    def _fresh(self, batch: RaggedBatch) -> Tensor | None:
        pairs = enumerate(zip(batch.query_lens, batch.seq_lens, strict=True))
        fresh = [index for index, (queries, length) in pairs if queries == length]
        return torch.tensor(fresh, device=batch.block_tables.device) if fresh else None


class LayerStates:
    """The recurrent state of one layer; a ``LayerStateCache``.

    Args:
        tensors: float32 (num_pages, *shape) each; used, not copied.
        layout: Where the sequences of a batch lie; shared by the layers of a group.
        group: Index of the group.
    """

    def __init__(self, tensors: tuple[Tensor, ...], *, layout: StateLayout, group: int) -> None:
        self.group = group
        self.tensors = tensors
        self._layout = layout

    def read(self, batch: RaggedBatch) -> tuple[Tensor, ...]:
        """The state of each sequence before this step, float32 (B, *shape) each; zeros for one that starts here.

        Copies. ``batch`` is the step as this layer's group sees it: ``batch.group(self.group)``.

        Raises:
            ValueError: A block table names no page or one outside the group.
        """
        pages, fresh = self._layout.find(batch)
        states = tuple(tensor.index_select(0, pages) for tensor in self.tensors)
        if fresh is not None:
            for state in states:
                state.index_fill_(0, fresh, 0.0)
        return states

    def write(self, batch: RaggedBatch, states: tuple[Tensor, ...]) -> None:
        """Store the state of each sequence after this step, in place, without its history.

        Raises:
            ValueError: The shapes do not fit the cache, or a block table names no page or one outside the group.
        """
        pages, _ = self._layout.find(batch)
        expected = [(pages.shape[0], *tensor.shape[1:]) for tensor in self.tensors]
        given = [tuple(state.shape) for state in states]
        if given != expected:
            raise ValueError(f"states must have shapes {expected}, got {given}")
        for tensor, state in zip(self.tensors, states, strict=True):
            tensor.index_copy_(0, pages, state.detach().to(tensor.dtype))
