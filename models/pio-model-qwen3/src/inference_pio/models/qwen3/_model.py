"""The decoder of Qwen3's dense models (Qwen Team 2025, arXiv:2505.09388).

``N`` tokens of a ragged batch, ``E`` hidden size, ``H`` query heads, ``K`` KV heads, ``D`` head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from inference_pio.attention import Attention
from inference_pio.layers import Embedding, GatedMLP, Linear, LMHead, RMSNorm, RotaryEmbedding, apply_rotary

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import AttentionBackend, KVCache, LinearMethod, RaggedBatch
    from inference_pio.models.qwen3._config import Qwen3Config


class Qwen3Model(nn.Module):
    """Embedding, decoder layers, final norm, head.

    Args:
        config: Sizes and switches.
        attention: Computes attention over the cache.
        linear: Storage and product of the projections.
        tied_head: Whether the embedding serves as the head.
    """

    def __init__(
        self, config: Qwen3Config, *, attention: AttentionBackend, linear: LinearMethod, tied_head: bool
    ) -> None:
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope, max_position=config.context)
        self.layers = nn.ModuleList(
            Qwen3Layer(config, index, attention=attention, linear=linear) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = LMHead(
            config.hidden_size, config.vocab_size, tied_to=self.embedding if tied_head else None, method=linear
        )

    def forward(self, token_ids: Tensor, positions: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """Token ids and positions (N,) to hidden states after the final norm, (N, E)."""
        x = self.embedding(token_ids)
        cos, sin = self.rotary.cos_sin(positions, self._lengths(positions, batch), dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, cache, batch)
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, E) to (R, V)."""
        logits: Tensor = self.head(hidden)
        return logits

    def _lengths(self, positions: Tensor, batch: RaggedBatch) -> Tensor | None:
        """Length of the sequence that each token belongs to, (N,), if the rotary embedding depends on it."""
        if not self.rotary.needs_lengths:
            return None
        lengths = [length for length, count in zip(batch.seq_lens, batch.query_lens, strict=True) for _ in range(count)]
        return torch.tensor(lengths, device=positions.device)


class Qwen3Layer(nn.Module):
    """One decoder layer: attention and MLP, each on a norm and added to the residual."""

    def __init__(self, config: Qwen3Config, index: int, *, attention: AttentionBackend, linear: LinearMethod) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Qwen3Attention(config, index, backend=attention, linear=linear)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, method=linear)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """(N, E) to (N, E)."""
        x = x + self.attention(self.attention_norm(x), cos, sin, cache, batch)
        x += self.mlp(self.mlp_norm(x))  # in place: the sum above is this layer's own
        return x


class Qwen3Attention(nn.Module):
    """Grouped-query attention whose queries and keys are normed per head before they are rotated."""

    def __init__(self, config: Qwen3Config, index: int, *, backend: AttentionBackend, linear: LinearMethod) -> None:
        super().__init__()
        bias, width = config.attention_bias, config.head_dim
        self.heads = (config.num_attention_heads, config.kv_heads, config.kv_heads)
        self.head_dim = width
        self.qkv = Linear(config.hidden_size, sum(self.heads) * width, bias=bias, method=linear)
        self.query_norm = RMSNorm(width, eps=config.rms_norm_eps)
        self.key_norm = RMSNorm(width, eps=config.rms_norm_eps)
        self.attend = Attention(config.attention(index), layer=index, backend=backend)
        self.output = Linear(config.num_attention_heads * width, config.hidden_size, bias=bias, method=linear)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """(N, E) to (N, E)."""
        q, k, v = self.qkv(x).view(x.shape[0], -1, self.head_dim).split(self.heads, dim=1)  # (N, H | K | K, D)
        q = apply_rotary(self.query_norm(q), cos, sin)
        k = apply_rotary(self.key_norm(k), cos, sin)
        out: Tensor = self.output(self.attend(q, k, v, cache, batch).flatten(1))
        return out
