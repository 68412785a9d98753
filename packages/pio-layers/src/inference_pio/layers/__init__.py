"""Transformer building blocks: norms, MLPs, linear layers, embeddings, one rotary embedding, and the weight loader."""

from inference_pio.layers._embedding import Embedding, LMHead
from inference_pio.layers._invariant import InvariantLinear
from inference_pio.layers._linear import DenseLinear, Linear
from inference_pio.layers._load import LoadReport, load_weights
from inference_pio.layers._mlp import GatedMLP
from inference_pio.layers._norm import RMSNorm
from inference_pio.layers._rotary import RotaryEmbedding, apply_rotary

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
]
