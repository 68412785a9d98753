"""The plain reference: explicit masks, explicit scores, softmax in float32. Every other backend is held to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.attention._packed import check_packed, check_queries, first_visible, pack, sequences

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec, LayerKVCache, RaggedBatch


class ReferenceAttention:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1), written out.

    With grouped queries (Ainslie et al. 2023, arXiv:2305.13245) head ``h`` reads KV head ``h // (H / K)``. Computes in
    float32 at least, and needs memory for all scores (H, T, S) of a sequence: to read and to compare with, not to run.
    """

    name = "reference"
    page_size_multiple = 1

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        *,
        query_lens: tuple[int, ...],
        key_lens: tuple[int, ...],
    ) -> Tensor:
        """Attention of packed sequences; see ``AttentionBackend.attend``. A query that sees no key gets zeros."""
        check_packed(q, k, v, spec, query_lens, key_lens)
        return pack([_attend(*sequence, spec) for sequence in sequences(q, k, v, query_lens, key_lens)], q, spec)

    def attend_cached(self, q: Tensor, cache: LayerKVCache, batch: RaggedBatch, spec: AttentionSpec) -> Tensor:
        """Attention over the cache; see ``AttentionBackend.attend_cached``."""
        check_queries(q, spec, batch.query_lens)
        outputs = []
        for index, query in enumerate(q.split_with_sizes(batch.query_lens)):
            keys, values = cache.read(batch, index, first_visible(batch, index, spec))
            outputs.append(_attend(query, keys, values, spec))
        return pack(outputs, q, spec)


def _visible(num_queries: int, num_keys: int, spec: AttentionSpec, device: torch.device) -> Tensor:
    """Which keys each query sees, bool (T, S).

    The last query stands at the position of the last key. Without ``spec.causal`` the window reaches as far forward as
    back.
    """
    key = torch.arange(num_keys, device=device)
    query = torch.arange(num_queries, device=device).unsqueeze(1) + (num_keys - num_queries)
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    if spec.causal:
        seen &= key <= query
    if spec.window is not None:
        seen &= (key - query).abs() < spec.window
    return seen


def _attend(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    compute = torch.promote_types(q.dtype, torch.float32)
    group = spec.num_heads // spec.num_kv_heads
    queries = q.transpose(0, 1).to(compute)  # (H, T, D)
    keys = k.transpose(0, 1).repeat_interleave(group, dim=0).to(compute)  # (H, S, D)
    values = v.transpose(0, 1).repeat_interleave(group, dim=0).to(compute)  # (H, S, Dv)
    seen = _visible(q.shape[0], k.shape[0], spec, q.device)  # (T, S)
    scores = queries @ keys.transpose(1, 2) * spec.softmax_scale  # (H, T, S)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    weights = weights.masked_fill(~seen, 0.0)  # a row that sees nothing is 0 / 0 until here
    return (weights @ values).transpose(0, 1).to(q.dtype)  # (T, H, Dv)
