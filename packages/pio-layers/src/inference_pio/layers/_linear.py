"""Linear layers: a thin module over a method that stores and multiplies the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from inference_pio.interfaces import LinearMethod


def _has_onednn_linear() -> bool:
    """Whether float32 products on the CPU would go to MKL although oneDNN's are at hand."""
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]  # torch left it unannotated
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # the same
    return mkl and onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class DenseLinear:
    """The weight as a plain matrix; a :class:`~inference_pio.interfaces.LinearMethod`.

    On x86 CPUs PyTorch sends float32 products to MKL, which off Intel's own processors runs a matrix-vector product in
    one thread and at half of the memory bandwidth. Where no gradient is wanted they go to oneDNN instead, straight from
    the same weight (``benchmarks/bench_ops.py`` measures both). Every other dtype and device uses PyTorch's own choice.
    """

    def __init__(self) -> None:
        self._onednn = _has_onednn_linear()

    @property
    def name(self) -> str:
        """``"dense"``."""
        return "dense"

    def create(
        self, layer: nn.Module, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype | None
    ) -> None:
        """Register ``weight`` (out_features, in_features) and ``bias`` (out_features,) or None, uninitialised."""
        layer.register_parameter("weight", nn.Parameter(torch.empty(out_features, in_features, dtype=dtype)))
        layer.register_parameter("bias", nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None)

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``: (..., in_features) to (..., out_features), in the dtype of ``x``."""
        return self.product(x, layer.weight, layer.bias)  # type: ignore[arg-type]  # registered above as tensors

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x`` (..., in) times ``weight`` (out, in) transposed, plus ``bias`` (out,)."""
        if (
            self._onednn
            and x.dtype is torch.float32
            and weight.dtype is torch.float32
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()  # the operator has no derivative
        ):
            result: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - the only name the product has
                x, weight, bias, "none", [], ""
            )
            return result
        return functional.linear(x, weight, bias)


class Linear(nn.Module):
    """A linear layer whose weight is stored and multiplied by ``method``.

    Args:
        in_features: Length of the last dimension of the input.
        out_features: Length of the last dimension of the output; for a merged projection, the sum of its parts.
        bias: Whether a bias is added.
        method: How the weight is kept; None keeps it dense.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, method: LinearMethod | None = None
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.method: LinearMethod = DenseLinear() if method is None else method
        self.method.create(self, in_features, out_features, bias=bias, dtype=None)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` (..., in_features) to (..., out_features), in the dtype of ``x``."""
        return self.method.apply(self, x)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self.in_features}, {self.out_features}, method={self.method.name}"
