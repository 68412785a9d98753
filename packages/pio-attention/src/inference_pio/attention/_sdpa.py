"""PyTorch's scaled_dot_product_attention, sequence by sequence, each in the form that was measured fastest.

The forms, and when each wins (``benchmarks/bench_attention.py`` measures them):

- decode and other handfuls of queries: the queries of a group become rows of its KV head, so no key is repeated and the
  kernel's work per key is a small matrix product (bfloat16: 3-7x faster than one row per head);
- whole prompt: ``is_causal``, which skips the upper half;
- a chunk after a past, or a window: an explicit mask over a few hundred queries and the keys these can see.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from torch.nn.functional import scaled_dot_product_attention

from inference_pio.attention._packed import check_packed, check_queries, first_visible, no_output, pack, sequences
from inference_pio.attention._reach import band, key_range, reach
from inference_pio.attention._row_attention import attend_rows, find_plan
from inference_pio.attention._row_plan import MAX_GROUP_ROWS

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.attention._reach import Reach
    from inference_pio.interfaces import AttentionSpec, LayerKVCache, RaggedBatch

# From this many queries on, the kernel reads each key often enough to repay bringing each head's rows together.
_PACK_FROM = 256
# Bounds the mask at 256 x S and leaves out keys that no query of the block sees.
_QUERY_BLOCK = 256


class SDPAAttention:
    """Attention by ``torch.nn.functional.scaled_dot_product_attention``: any device, any dtype, any head dim."""

    name = "sdpa"
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
        """Attention over the cache; see ``AttentionBackend.attend_cached``. Reads no key before the window."""
        check_queries(q, spec, batch.query_lens)
        plan = find_plan(q, cache, batch, spec)
        queries = (q,) if len(batch.query_lens) == 1 else q.split_with_sizes(batch.query_lens)
        singly = range(len(queries)) if plan is None else plan.others
        outputs = [_attend_one(queries[index], cache, batch, index, spec) for index in singly]
        if plan is None or not plan.pieces:
            return pack(outputs, q, spec)
        decoded = attend_rows(q, cache, plan, spec)
        if not outputs:
            return decoded
        out = no_output(q, spec)
        out.index_copy_(0, plan.rows, decoded)
        starts = list(accumulate(batch.query_lens, initial=0))
        for index, output in zip(singly, outputs, strict=True):
            out[starts[index] : starts[index + 1]] = output
        return out


def _attend_one(q: Tensor, cache: LayerKVCache, batch: RaggedBatch, index: int, spec: AttentionSpec) -> Tensor:
    """Sequence ``index`` of the step with its own queries (T, H, D)."""
    keys, values = cache.read(batch, index, first_visible(batch, index, spec))
    return _attend(q, keys.to(q.dtype), values.to(q.dtype), spec)


def _attend(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """One sequence: q (T, H, D), k and v (S, K, D); leading keys that no query sees may be left out."""
    num_queries, num_keys = q.shape[0], k.shape[0]
    if num_queries == 0 or num_keys == 0:
        return no_output(q, spec)
    limits = reach(spec)
    windowed = 0 <= limits.back < max(num_queries, num_keys) - 1
    few = num_queries * (spec.num_heads // spec.num_kv_heads) <= MAX_GROUP_ROWS
    if num_queries == 1 and windowed:
        k, v = k[-limits.back - 1 :], v[-limits.back - 1 :]
    if num_queries == 1 or not (spec.causal or windowed):
        return _by_rows(q, k, v, spec, None) if few else _by_heads(q, k, v, spec, causal=False)
    if num_queries == num_keys and not windowed:
        return _by_heads(q, k, v, spec, causal=True)
    if few:
        mask = band(range(num_keys - num_queries, num_keys), range(num_keys), limits, q.device)
        return _by_rows(q, k, v, spec, mask)
    return _by_blocks(q, k, v, spec, limits)


def _by_rows(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, mask: Tensor | None) -> Tensor:
    """The (token, head of the group) pairs as the queries of each KV head: 1 x K heads x T*G rows."""
    num_queries, kv_heads = q.shape[0], spec.num_kv_heads
    group = spec.num_heads // kv_heads
    keys, values = k.unsqueeze(0).transpose(1, 2), v.unsqueeze(0).transpose(1, 2)  # (1, K, S, D), views
    if num_queries == 1:
        rows = q.view(1, kv_heads, group, spec.head_dim)
        return scaled_dot_product_attention(rows, keys, values, scale=spec.softmax_scale).reshape(1, spec.num_heads, -1)
    rows = q.view(num_queries, kv_heads, group, -1).transpose(0, 1).reshape(1, kv_heads, num_queries * group, -1)
    if mask is not None:
        mask = mask.repeat_interleave(group, dim=0)  # (T*G, S)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=spec.softmax_scale)
    return out.reshape(kv_heads, num_queries, group, -1).transpose(0, 1).reshape(num_queries, spec.num_heads, -1)


def _by_heads(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, causal: bool) -> Tensor:
    """Without a mask: 1 x H heads x T rows; the kernel finds each group's KV head itself."""
    queries, keys, values = (_heads_first(tensor, q.shape[0]).unsqueeze(0) for tensor in (q, k, v))
    grouped = spec.num_heads != spec.num_kv_heads
    out = scaled_dot_product_attention(
        queries, keys, values, is_causal=causal, scale=spec.softmax_scale, enable_gqa=grouped
    )
    return out.transpose(1, 2).reshape(q.shape[0], spec.num_heads, -1)


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, limits: Reach) -> Tensor:
    """With a mask: blocks of queries over the keys that each can see, as K x G heads with keys expanded, not copied."""
    num_queries, num_keys, kv_heads = q.shape[0], k.shape[0], spec.num_kv_heads
    group, past = spec.num_heads // kv_heads, num_keys - num_queries
    queries = _heads_first(q, num_queries).view(kv_heads, group, num_queries, -1)  # (K, G, T, D)
    keys, values = (_heads_first(x, num_queries).unsqueeze(1).expand(-1, group, -1, -1) for x in (k, v))  # (K, G, S, D)
    out = q.new_zeros(num_queries, kv_heads, group, spec.output_dim)
    for begin in range(0, num_queries, _QUERY_BLOCK):
        end = min(begin + _QUERY_BLOCK, num_queries)
        low, high = key_range(past + begin, past + end - 1, num_keys, limits)
        if low >= high:
            continue
        block = scaled_dot_product_attention(
            queries[:, :, begin:end],
            keys[:, :, low:high],
            values[:, :, low:high],
            attn_mask=band(range(past + begin, past + end), range(low, high), limits, q.device),
            scale=spec.softmax_scale,
        )
        out[begin:end] = block.permute(2, 0, 1, 3)
    return out.view(num_queries, spec.num_heads, -1)


def _heads_first(tensor: Tensor, num_queries: int) -> Tensor:
    """(L, heads, D) to (heads, L, D): a view for few queries, a copy with each head's rows together for many."""
    heads = tensor.transpose(0, 1)
    return heads.contiguous() if num_queries >= _PACK_FROM else heads
