"""The gated feed-forward block."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from inference_pio.layers._invariant import invariant_activation
from inference_pio.layers._linear import Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.interfaces import LinearMethod


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    match name:
        case "silu":
            return functional.silu
        case "gelu":
            return functional.gelu
        case "gelu_tanh":
            return partial(functional.gelu, approximate="tanh")
    raise ValueError(f"activation must be one of 'silu', 'gelu', 'gelu_tanh', got {name!r}")


class GatedMLP(nn.Module):
    """``down(activation(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202), gate and up as one matrix.

    Args:
        hidden_size: ``E``.
        intermediate_size: ``F``.
        activation: ``"silu"`` (SwiGLU), ``"gelu"`` (GEGLU, exact) or ``"gelu_tanh"`` (GEGLU, tanh approximation).
        bias: Whether the projections have biases.
        method: How the weights are kept; None keeps them dense. Where its products are row-invariant
            (:class:`InvariantLinear`), so is the whole block.

    ``gate_up.weight`` is (2F, E): the rows of the gate, then those of up. ``down.weight`` is (E, F).

    Raises:
        ValueError: Unknown activation.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str = "silu",
        bias: bool = False,
        method: LinearMethod | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        invariant = getattr(method, "row_invariant", False)
        self._activate = invariant_activation(activation) if invariant else _activation(activation)
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, bias=bias, method=method)
        self.down = Linear(intermediate_size, hidden_size, bias=bias, method=method)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (N, E) to a new (N, E) in its dtype."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (N, F) each
        out: Tensor = self.down(self._activate(gate) * up)
        return out

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"activation={self.activation}"
