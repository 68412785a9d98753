"""The two ends of a language model: token ids to vectors, and vectors to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference_pio.layers._invariant import InvariantLinear
from inference_pio.layers._linear import DenseLinear

if TYPE_CHECKING:
    from inference_pio.interfaces import LinearMethod


class Embedding(nn.Module):
    """One row of ``weight`` (V, E) per token.

    Args:
        vocab_size: ``V``.
        hidden_size: ``E``.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look ``token_ids`` int64 (N,) up, to (N, E) in the dtype of the weight; a copy, safe to change in place.

        Raises:
            IndexError: An id outside ``[0, V)``, on the CPU.
        """
        return functional.embedding(token_ids, self.weight)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class LMHead(nn.Module):
    """Projection of hidden states to the vocabulary, ``weight`` (V, E).

    Args:
        hidden_size: ``E``.
        vocab_size: ``V``.
        tied_to: The embedding whose parameter the head shares; None gives the head its own. The two stay one parameter
            when :func:`~inference_pio.layers.load_weights` fills the model.
        method: How the weight is kept and multiplied; None keeps it dense. A tied head has the embedding's matrix, so
            it multiplies by ``method`` where that is ``DenseLinear`` or ``InvariantLinear``, else as ``DenseLinear``.

    Raises:
        ValueError: The embedding has another shape than the head.
    """

    def __init__(
        self, hidden_size: int, vocab_size: int, *, tied_to: Embedding | None, method: LinearMethod | None = None
    ) -> None:
        super().__init__()
        if tied_to is not None and tied_to.weight.shape != (vocab_size, hidden_size):
            raise ValueError(
                f"a head of shape ({vocab_size}, {hidden_size}) cannot share an embedding of shape "
                f"{tuple(tied_to.weight.shape)}"
            )
        if tied_to is None:
            self.method: LinearMethod = DenseLinear() if method is None else method
            self.method.create(self, hidden_size, vocab_size, bias=False, dtype=None)
        else:
            self.method = method if isinstance(method, DenseLinear | InvariantLinear) else DenseLinear()
            self.register_parameter("bias", None)
            self.weight = tied_to.weight
        self._size = (hidden_size, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of ``hidden`` (R, E): (R, V), in its dtype."""
        return self.method.apply(self, hidden)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self._size[0]}, {self._size[1]}"
