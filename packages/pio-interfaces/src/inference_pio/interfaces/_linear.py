"""How the weight of a linear layer is stored and multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn


@runtime_checkable
class LinearMethod(Protocol):
    """Storage and product of one kind of weight: dense, or one of the quantised forms.

    Stateless: one instance serves every layer of a model. The state lives in the layer's parameters.
    """

    @property
    def name(self) -> str:
        """Name for messages and records, such as ``"dense"``."""

    def create(self, layer: nn.Module, in_features: int, out_features: int, *, bias: bool, dtype: dtype | None) -> None:
        """Register the parameters of ``layer``, uninitialised, on torch's current default device.

        Every method registers ``weight`` (what a checkpoint's ``.weight`` is streamed into) and, if ``bias``, ``bias``.
        """

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Multiply: ``x`` (..., in_features) to (..., out_features), in the dtype of ``x``."""
