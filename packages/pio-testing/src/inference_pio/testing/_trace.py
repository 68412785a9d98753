"""What a model computed on the way to its logits: the hidden states after each decoder layer."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One sequence seen through a model.

    Attributes:
        logits: float32 (N, V).
        layers: Hidden states after each decoder layer, float32 (N, E).
    """

    logits: Tensor
    layers: tuple[Tensor, ...]


@contextlib.contextmanager
def record_layers(model: nn.Module, num_layers: int) -> Iterator[list[Tensor]]:
    """Record the output of each decoder layer while the context is open.

    The decoder layers are the first ``ModuleList`` of ``num_layers`` entries. A layer that returns a tuple has its
    hidden states first.

    Yields:
        A list that fills with float32 (N, E) tensors, one per layer and forward.

    Raises:
        ValueError: The model has no such list.
    """
    recorded: list[Tensor] = []

    def record(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        recorded.append(hidden.detach().float().reshape(-1, hidden.shape[-1]))

    handles = [layer.register_forward_hook(record) for layer in decoder_layers(model, num_layers)]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """The first ``ModuleList`` of ``num_layers`` entries.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise ValueError(f"{type(model).__name__} has no ModuleList of {num_layers} decoder layers")
