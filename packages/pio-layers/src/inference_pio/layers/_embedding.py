"""The two ends of a language model: token ids to vectors, and vectors to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference_pio.layers._linear import DenseLinear


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

    Raises:
        ValueError: The embedding has another shape than the head.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, tied_to: Embedding | None) -> None:
        super().__init__()
        if tied_to is not None and tied_to.weight.shape != (vocab_size, hidden_size):
            raise ValueError(
                f"a head of shape ({vocab_size}, {hidden_size}) cannot share an embedding of shape "
                f"{tuple(tied_to.weight.shape)}"
            )
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size)) if tied_to is None else tied_to.weight
        self._dense = DenseLinear()

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of ``hidden`` (R, E): (R, V), in its dtype."""
        return self._dense.product(hidden, self.weight)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"
