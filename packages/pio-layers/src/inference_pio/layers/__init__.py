"""Transformer building blocks: norms, MLPs, linear layers, embeddings, one rotary embedding, and the weight loader.

Names are resolved on first use, so that :mod:`inference_pio.layers.frequencies` stays importable without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.layers._embedding import Embedding, LMHead
    from inference_pio.layers._invariant import InvariantLinear
    from inference_pio.layers._linear import DenseLinear, Linear
    from inference_pio.layers._load import LoadReport, load_weights
    from inference_pio.layers._mlp import GatedMLP
    from inference_pio.layers._norm import RMSNorm
    from inference_pio.layers._rotary import RotaryEmbedding, apply_rotary
    from inference_pio.layers.frequencies import rope_frequencies

__all__ = [
    "DenseLinear",
    "Embedding",
    "GatedMLP",
    "InvariantLinear",
    "LMHead",
    "Linear",
    "LoadReport",
    "RMSNorm",
    "RotaryEmbedding",
    "apply_rotary",
    "load_weights",
    "rope_frequencies",
]

_MODULES = {
    "DenseLinear": "_linear",
    "Embedding": "_embedding",
    "GatedMLP": "_mlp",
    "InvariantLinear": "_invariant",
    "LMHead": "_embedding",
    "Linear": "_linear",
    "LoadReport": "_load",
    "RMSNorm": "_norm",
    "RotaryEmbedding": "_rotary",
    "apply_rotary": "_rotary",
    "load_weights": "_load",
    "rope_frequencies": "frequencies",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
