"""Weights by mmap: safetensors and GGUF, validated, as NumPy views or decoded to float32. No torch.

>>> source = open_weights("model.gguf")  # doctest: +SKIP
>>> source.decode("output_norm.weight")  # doctest: +SKIP
"""

from inference_pio.weights._check import check_finite
from inference_pio.weights._dequantize import decodable_encodings, dequantize
from inference_pio.weights._encodings import block_layout
from inference_pio.weights._gguf import GGUFSource
from inference_pio.weights._limits import DEFAULT_LIMITS, Limits
from inference_pio.weights._open import open_weights
from inference_pio.weights._safetensors import SafetensorsSource

__all__ = [
    "DEFAULT_LIMITS",
    "GGUFSource",
    "Limits",
    "SafetensorsSource",
    "block_layout",
    "check_finite",
    "decodable_encodings",
    "dequantize",
    "open_weights",
]
