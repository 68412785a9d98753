"""Root mean square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) over the last dimension, computed in float32.

    The two forms differ in rounding as well as in the weight, and each follows the models that use it:

    - plain: ``cast(x / rms(x)) * weight``: cast to the dtype of ``x``, then multiply (Llama, Qwen);
    - ``unit_offset``: ``cast(x / rms(x) * (1 + weight))``: multiply in float32, then cast (Gemma, Qwen3-Next).

    Args:
        size: Length of the last dimension: ``E``, or ``D`` for a norm of each head.
        eps: Added to the mean square.
        unit_offset: Whether the checkpoint stores ``weight - 1``.
    """

    def __init__(self, size: int, *, eps: float, unit_offset: bool = False) -> None:
        super().__init__()
        self.shape = (size,)
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.zeros(size) if unit_offset else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., size) to a new tensor of its shape and dtype."""
        if self.unit_offset:
            weight = self.weight.float() + 1.0
            return functional.rms_norm(x.float(), self.shape, weight, self.eps).to(x.dtype)
        # Without a weight the function casts back before it returns; given one, it would multiply in float32 first.
        return functional.rms_norm(x, self.shape, None, self.eps) * self.weight

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self.shape[0]}, eps={self.eps}, unit_offset={self.unit_offset}"
