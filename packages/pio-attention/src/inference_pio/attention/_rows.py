"""The rows of a cache: one per token slot, stored as they are or quantised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS = 127
"""Symmetric int8: -127 .. 127, so that a vector and its negative are stored alike."""


class Rows(Protocol):
    """Vectors (num_pages * P, K, D) by slot."""

    @property
    def pages(self) -> Tensor:
        """(num_pages, P, K, D), the storage of the elements."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All storage, each (num_pages, ...): what a copy of a page copies."""

    def write(self, rows: Tensor, slots: Tensor, start: int | None) -> None:
        """Store ``rows`` (N, K, D) at ``slots`` (N,); ``start`` is the first of slots known to be consecutive."""

    def read(self, begin: int, end: int) -> Tensor:
        """The rows of slots ``begin .. end - 1``, (end - begin, K, D)."""

    def gather(self, pages: Tensor, size: int) -> Tensor:
        """The rows of these pages of ``size`` slots, one after the other, (len(pages) * size, K, D): a copy.

        ``size`` is ``P`` or divides it; smaller pages are numbered alike, from 0 in order of their slots.
        """

    def gather_slots(self, slots: Tensor) -> Tensor:
        """The rows of these slots, (len(slots), K, D): a copy."""


class PlainRows:
    """Rows in the dtype of the cache.

    Args:
        pages: (num_pages, P, K, D), contiguous; used, not copied.
    """

    def __init__(self, pages: Tensor) -> None:
        self.pages = pages
        self.tensors = (pages,)
        self._rows = pages.flatten(0, 1)

    def write(self, rows: Tensor, slots: Tensor, start: int | None) -> None:
        """See :class:`Rows`; converts to the dtype of the cache."""
        _store(self._rows, rows, slots, start)

    def read(self, begin: int, end: int) -> Tensor:
        """See :class:`Rows`; a view."""
        return self._rows[begin:end]

    def gather(self, pages: Tensor, size: int) -> Tensor:
        """See :class:`Rows`."""
        return _take(self._rows, pages, size)

    def gather_slots(self, slots: Tensor) -> Tensor:
        """See :class:`Rows`."""
        return self._rows.index_select(0, slots)


class Int8Rows:
    """Rows in int8, with a float32 scale per token and head: the largest magnitude of the vector becomes 127.

    A stored element is off by at most half a step, 1/254 of the largest magnitude of its vector. The scale is float32
    because float16 would lose vectors whose largest element is below 0.008 (the scale becomes subnormal), for 2 bytes
    in ``D + 4``. A vector with an infinity or a NaN is read as NaN.

    Args:
        pages: int8 (num_pages, P, K, D), contiguous; used, not copied.
        scales: float32 (num_pages, P, K, 1), likewise.
    """

    def __init__(self, pages: Tensor, scales: Tensor) -> None:
        self.pages = pages
        self.tensors = (pages, scales)
        self._rows = pages.flatten(0, 1)
        self._scales = scales.flatten(0, 1)

    def write(self, rows: Tensor, slots: Tensor, start: int | None) -> None:
        """See :class:`Rows`; quantises."""
        exact = rows.detach().float()
        scales = exact.abs().amax(dim=-1, keepdim=True) / _LEVELS
        # The smallest normal number keeps a vector of zeros from dividing by zero.
        steps = exact / scales.clamp_min(torch.finfo(torch.float32).tiny)
        # What is not finite has no defined int8; its scale, which is not finite either, carries it.
        _store(self._rows, steps.round_().nan_to_num_(0.0).clamp_(-_LEVELS, _LEVELS).to(torch.int8), slots, start)
        _store(self._scales, torch.where(scales.isfinite(), scales, torch.nan), slots, start)

    def read(self, begin: int, end: int) -> Tensor:
        """See :class:`Rows`; a copy in float32."""
        return self._rows[begin:end] * self._scales[begin:end]

    def gather(self, pages: Tensor, size: int) -> Tensor:
        """See :class:`Rows`; in float32."""
        return _take(self._rows, pages, size) * _take(self._scales, pages, size)

    def gather_slots(self, slots: Tensor) -> Tensor:
        """See :class:`Rows`; in float32."""
        return self._rows.index_select(0, slots) * self._scales.index_select(0, slots)


def _take(rows: Tensor, pages: Tensor, size: int) -> Tensor:
    return rows.view(-1, size, *rows.shape[1:]).index_select(0, pages).flatten(0, 1)


def _store(target: Tensor, rows: Tensor, slots: Tensor, start: int | None) -> None:
    """Copy ``rows`` to ``target[slots]``; ``start`` is the first slot if they are known to be consecutive."""
    if rows.requires_grad:
        rows = rows.detach()
    if start is not None and start + rows.shape[0] <= target.shape[0]:
        target[start : start + rows.shape[0]] = rows
    else:
        target.index_copy_(0, slots, rows if rows.dtype == target.dtype else rows.to(target.dtype))
