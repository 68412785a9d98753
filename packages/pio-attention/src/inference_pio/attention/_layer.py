"""The attention of one decoder layer: store this step's keys and values, then attend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import AttentionBackend, AttentionSpec, KVCache, RaggedBatch


class Attention(nn.Module):
    """Attention over a KV cache; has no parameters.

    Args:
        spec: What to compute.
        layer: Index of this layer in the cache.
        backend: How to compute it.
    """

    def __init__(self, spec: AttentionSpec, *, layer: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.spec = spec
        self.layer = layer
        self.backend = backend

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """Write ``k`` (N, K, D) and ``v`` (N, K, Dv) to ``cache``, in place, and attend with ``q`` (N, H, D).

        ``batch`` is the step as the first group of layers sees it; this layer takes its own group's view.

        Returns:
            (N, H, Dv) in the dtype of ``q``.
        """
        pages = cache.layer(self.layer)
        view = batch.group(pages.group)
        pages.write(k, v, view.slot_mapping)
        return self.backend.attend_cached(q, pages, view, self.spec)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        return f"layer={self.layer}, backend={self.backend.name}, {self.spec}"
