"""Products and activations whose rows do not depend on the rows beside them, bit for bit.

A library picks its kernel by the number of rows, and kernels add in different orders, so the same token gets other last
bits alone than in company. What is known of PyTorch on x86 CPUs: oneDNN's products differ between one row and several,
but not among numbers of rows above one; MKL's differ at up to a dozen rows, and by the row's place among them; fused
activations differ where a thread's share does not end at a vector's end, while ``exp``, ``erf`` and ``tanh`` alone do
not. Row-wise reductions (norms, softmax) and sums, products and quotients of elements are safe as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference_pio.interfaces import UnsupportedError
from inference_pio.layers._linear import DenseLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

TILE_ROWS = 16
"""Rows of every product where padding a lone row is not enough."""

_PROBES = (1, 2, 3, 7, 16, 37)


class InvariantLinear:
    """The weight as a plain matrix, each row of the product the same bits in any company; a ``LinearMethod``.

    Takes the cheapest form that keeps the promise for a weight's shape and dtype on this machine, and makes sure with a
    few products at the first use: a lone row is multiplied as two, which suffices for oneDNN; otherwise every product
    has ``TILE_ROWS`` rows. The number of threads must stay the same for the results to be the same.
    """

    row_invariant = True

    def __init__(self) -> None:
        self._dense = DenseLinear()
        self._forms: dict[tuple[torch.Size, torch.dtype, torch.device, int], Product] = {}

    @property
    def name(self) -> str:
        """``"invariant"``."""
        return "invariant"

    def create(
        self, layer: nn.Module, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype | None
    ) -> None:
        """Register ``weight`` (out_features, in_features) and ``bias`` (out_features,) or None, uninitialised."""
        self._dense.create(layer, in_features, out_features, bias=bias, dtype=dtype)

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``: (..., in_features) to (..., out_features), in the dtype of ``x``.

        Raises:
            UnsupportedError: No form of the product keeps the promise on this machine.
            ValueError: A gradient is wanted: these products have none.
        """
        weight: Tensor = layer.weight  # type: ignore[assignment]  # a module's attributes are typed as a union
        bias: Tensor | None = getattr(layer, "bias", None)  # a head has none
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            raise ValueError("row-invariant products have no gradient: use torch.inference_mode() or DenseLinear")
        rows = x.reshape(-1, x.shape[-1]).contiguous()  # strides choose kernels too
        with torch.no_grad():
            return self._form(weight)(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])

    def _form(self, weight: Tensor) -> Product:
        """The form that was found to keep the promise for products with ``weight``."""
        key = (weight.shape, weight.dtype, weight.device, torch.get_num_threads())
        found = self._forms.get(key)
        if found is None:
            found = next((form for form in (self._paired, self._tiled) if _is_invariant(form, weight)), None)
            if found is None:
                raise UnsupportedError(
                    f"no product with a weight {tuple(weight.shape)} of {weight.dtype} on {weight.device} gives a row "
                    "the same bits in any company",
                    hint="run in float32 on a CPU, or without determinism",
                )
            self._forms[key] = found
        return found

    def _paired(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """All rows in one product, a lone one together with itself."""
        if rows.shape[0] == 1:
            return self._dense.product(rows.expand(2, -1).contiguous(), weight, bias)[:1]
        return self._dense.product(rows, weight, bias)

    def _tiled(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Products of ``TILE_ROWS`` rows each, the last filled up with zeros."""
        count = rows.shape[0]
        padded = functional.pad(rows, (0, 0, 0, -count % TILE_ROWS))
        out = rows.new_empty(padded.shape[0], weight.shape[0])
        for start in range(0, count, TILE_ROWS):
            out[start : start + TILE_ROWS] = self._dense.product(padded[start : start + TILE_ROWS], weight, bias)
        return out[:count]


def _is_invariant(form: Product, weight: Tensor) -> bool:
    """Whether a few rows get the same bits in different numbers, companies and places."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(max(_PROBES), weight.shape[1], generator=generator).to(weight)
    whole = form(rows, weight, None)
    return all(
        torch.equal(form(rows[start : start + count], weight, None), whole[start : start + count])
        for count in _PROBES
        for start in {0, rows.shape[0] - count}
    )


def invariant_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation ``name`` of a gated MLP from operations that give an element the same bits wherever it stands.

    Each computes in float32 and returns the dtype of its input.

    Raises:
        ValueError: Unknown activation.
    """
    match name:
        case "silu":
            return _silu
        case "gelu":
            return _gelu
        case "gelu_tanh":
            return _gelu_tanh
    raise ValueError(f"activation must be one of 'silu', 'gelu', 'gelu_tanh', got {name!r}")


def _silu(x: Tensor) -> Tensor:
    """``x / (1 + exp(-x))``; a large negative ``x`` gives ``x / inf``, which is the limit."""
    wide = x.float()
    return wide.div(wide.neg().exp_().add_(1.0)).to(x.dtype)


def _gelu(x: Tensor) -> Tensor:
    wide = x.float()
    return wide.mul(0.5**0.5).erf_().add_(1.0).mul_(wide).mul_(0.5).to(x.dtype)


def _gelu_tanh(x: Tensor) -> Tensor:
    wide = x.float()
    inner = wide.mul(wide).mul_(0.044715).add_(1.0).mul_(wide).mul_((2.0 / torch.pi) ** 0.5)
    return inner.tanh_().add_(1.0).mul_(wide).mul_(0.5).to(x.dtype)
