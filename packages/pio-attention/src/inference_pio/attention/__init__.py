"""Attention for PyTorch inference over ragged batches, and the KV caches it reads.

Backends (reference, SDPA, FlexAttention, FlashAttention-2) stand behind ``AttentionBackend`` of ``pio-interfaces``, the
contiguous and the paged cache behind ``KVCache``. Nothing here knows about models, tokens or scheduling.
"""

from inference_pio.attention._batch import make_batch, ragged_batch
from inference_pio.attention._flash_attention2 import FlashAttention2
from inference_pio.attention._flex_attention import FlexAttention
from inference_pio.attention._kv_cache import ContiguousKVCache, PagedKVCache, kv_bytes
from inference_pio.attention._layer import Attention
from inference_pio.attention._reference import ReferenceAttention
from inference_pio.attention._registry import backend_names, get_backend
from inference_pio.attention._sdpa import SDPAAttention

__all__ = [
    "Attention",
    "ContiguousKVCache",
    "FlashAttention2",
    "FlexAttention",
    "PagedKVCache",
    "ReferenceAttention",
    "SDPAAttention",
    "backend_names",
    "get_backend",
    "kv_bytes",
    "make_batch",
    "ragged_batch",
]
