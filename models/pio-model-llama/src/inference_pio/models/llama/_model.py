"""The decoder of Llama (Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783).

``N`` tokens of a ragged batch, ``E`` hidden size, ``F`` inner size, ``H`` query heads, ``K`` KV heads, ``D`` head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from inference_pio.attention import Attention
from inference_pio.interfaces import AttentionSpec
from inference_pio.layers import Embedding, GatedMLP, Linear, LMHead, RMSNorm, RotaryEmbedding, apply_rotary

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import AttentionBackend, KVCache, LinearMethod, RaggedBatch
    from inference_pio.models.llama._config import LlamaConfig


class LlamaModel(nn.Module):
    """Embedding, decoder layers, final norm, head.

    Args:
        config: Sizes and switches.
        attention: Computes attention over the cache.
        linear: Storage and product of the projections.
        tied_head: Whether the embedding serves as the head.
    """

    def __init__(
        self, config: LlamaConfig, *, attention: AttentionBackend, linear: LinearMethod, tied_head: bool
    ) -> None:
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.head_size, config.rope, max_position=config.context)
        self.layers = nn.ModuleList(
            LlamaLayer(config, index, attention=attention, linear=linear) for index in range(config.num_hidden_layers)
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


class LlamaLayer(nn.Module):
    """One decoder layer: attention and MLP, each on a norm and added to the residual."""

    def __init__(self, config: LlamaConfig, index: int, *, attention: AttentionBackend, linear: LinearMethod) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = LlamaAttention(config, index, backend=attention, linear=linear)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            activation=config.hidden_act,
            bias=config.mlp_bias,
            method=linear,
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """(N, E) to (N, E)."""
        x = x + self.attention(self.attention_norm(x), cos, sin, cache, batch)
        x += self.mlp(self.mlp_norm(x))  # in place: the sum above is this layer's own
        return x


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions; queries, keys and values in one projection."""

    def __init__(self, config: LlamaConfig, index: int, *, backend: AttentionBackend, linear: LinearMethod) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.kv_heads
        self.head_dim = config.head_size
        spec = AttentionSpec(num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim)
        qkv_heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv = Linear(config.hidden_size, qkv_heads * self.head_dim, bias=config.attention_bias, method=linear)
        self.attend = Attention(spec, layer=index, backend=backend)
        self.output = Linear(
            self.num_heads * self.head_dim, config.hidden_size, bias=config.attention_bias, method=linear
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """(N, E) to (N, E)."""
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)  # (N, H + 2 K, D)
        qk, v = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        # Queries and keys turn by the same angles: one rotation for both.
        q, k = torch.split(apply_rotary(qk, cos, sin), [self.num_heads, self.num_kv_heads], dim=1)
        out: Tensor = self.output(self.attend(q, k, v, cache, batch).flatten(1))
        return out
