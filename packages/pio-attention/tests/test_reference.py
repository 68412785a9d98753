"""The reference held to oracles that share nothing with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from inference_pio.attention import ReferenceAttention
from inference_pio.interfaces import AttentionSpec

CASES = [
    ((9, 3), (True, None), (12, 12)),
    ((9, 3), (True, 4), (5, 12)),
    ((4, 4), (False, None), (3, 7)),
    ((4, 1), (False, 3), (6, 9)),
    ((8, 2), (True, 6), (1, 9)),
]


def explicit_mask(num_queries: int, num_keys: int, *, causal: bool, window: int | None) -> torch.Tensor:
    """Entry by entry, as the contract words it."""
    rows = []
    for i in range(num_queries):
        p = num_keys - num_queries + i
        low = -math.inf if window is None else p - window + 1
        high = p if causal else math.inf if window is None else p + window - 1
        rows.append([low <= j <= high for j in range(num_keys)])
    return torch.tensor(rows)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_torch_sdpa_with_explicit_mask(case, scale, make_qkv):
    """On one sequence the reference is torch's SDPA with repeated heads and a mask written entry by entry."""
    (num_heads, num_kv_heads), (causal, window), (num_queries, num_keys) = case
    spec = AttentionSpec(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=16, scale=scale, causal=causal, window=window
    )
    q, k, v = make_qkv(spec, num_queries, num_keys)
    out = ReferenceAttention().attend(q, k, v, spec, query_lens=(num_queries,), key_lens=(num_keys,))
    keys, values = (tensor.repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1) for tensor in (k, v))
    mask = explicit_mask(num_queries, num_keys, causal=causal, window=window)
    expected = scaled_dot_product_attention(q.transpose(0, 1), keys, values, attn_mask=mask, scale=scale)
    torch.testing.assert_close(out, expected.transpose(0, 1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_transformers_eager(case, make_qkv):
    """On one sequence the reference is transformers' eager attention of Llama with an additive mask."""
    llama = pytest.importorskip(
        "transformers.models.llama.modeling_llama", reason="transformers is the independent oracle"
    )
    (num_heads, num_kv_heads), (causal, window), (num_queries, num_keys) = case
    spec = AttentionSpec(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=16, causal=causal, window=window)
    q, k, v = make_qkv(spec, num_queries, num_keys)
    module = torch.nn.Module()
    module.num_key_value_groups = num_heads // num_kv_heads
    seen = explicit_mask(num_queries, num_keys, causal=causal, window=window)
    additive = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected, _ = llama.eager_attention_forward(
        module, *(tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v)), additive, 16**-0.5
    )
    out = ReferenceAttention().attend(q, k, v, spec, query_lens=(num_queries,), key_lens=(num_keys,))
    torch.testing.assert_close(out, expected.squeeze(0), atol=2e-6, rtol=0)


def test_equals_numpy_loop(make_qkv):
    """The reference is the formula of the paper, one query, one head and one key at a time in float64."""
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, window=3)
    q, k, v = make_qkv(spec, 4, 6)
    out = ReferenceAttention().attend(q, k, v, spec, query_lens=(4,), key_lens=(6,))
    expected = np.zeros(q.shape)
    for i in range(4):
        p = 6 - 4 + i
        for head in range(4):
            keys = [j for j in range(6) if p - 3 + 1 <= j <= p]
            scores = np.array([float(q[i, head].double() @ k[j, head // 2].double()) / math.sqrt(8) for j in keys])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            expected[i, head] = sum(w * v[j, head // 2].double().numpy() for w, j in zip(weights, keys, strict=True))
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)


def test_sequences_do_not_see_each_other(make_qkv):
    """A packed batch gives what each of its sequences gives alone."""
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8)
    query_lens, key_lens = (3, 1, 4), (3, 9, 6)
    q, k, v = make_qkv(spec, 8, 18)
    backend = ReferenceAttention()
    out = backend.attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
    alone = [
        backend.attend(a, b, c, spec, query_lens=(len(a),), key_lens=(len(b),))
        for a, b, c in zip(q.split(query_lens), k.split(key_lens), v.split(key_lens), strict=True)
    ]
    assert torch.equal(out, torch.cat(alone))


def test_a_query_without_keys_gives_zeros(make_qkv):
    """Causal queries before the first key, and queries of an empty sequence, see nothing and give zeros, not NaN."""
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8)
    q, k, v = make_qkv(spec, 7, 2)
    out = ReferenceAttention().attend(q, k, v, spec, query_lens=(5, 2), key_lens=(2, 0))
    assert torch.equal(out[:3], torch.zeros(3, 4, 8))
    assert torch.equal(out[5:], torch.zeros(2, 4, 8))
    assert (out[3:5] != 0).all()


def test_float64_stays_float64(make_qkv):
    """Inputs more precise than float32 are not rounded to it."""
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8)
    q, k, v = make_qkv(spec, 3, 5, torch.float64)
    out = ReferenceAttention().attend(q, k, v, spec, query_lens=(3,), key_lens=(5,))
    rounded = ReferenceAttention().attend(q.float(), k.float(), v.float(), spec, query_lens=(3,), key_lens=(5,))
    assert out.dtype == torch.float64
    assert not torch.equal(out, rounded.double())
