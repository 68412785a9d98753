"""Keys and values in int8: the error budget of what is stored, and of attention over it."""

from __future__ import annotations

import pytest
import torch

from inference_pio.attention import (
    ContiguousKVCache,
    FlashAttention2,
    FlexAttention,
    PagedKVCache,
    ReferenceAttention,
    SDPAAttention,
    _flash_attention2,
    kv_bytes,
    make_batch,
)
from inference_pio.interfaces import AttentionSpec, LatentSpec, UnsupportedError

SPEC = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=64)


def int8_cache(num_pages=32, spec=SPEC):
    return PagedKVCache([spec], num_pages=num_pages, page_size=4, dtype=torch.int8)


def vectors(count, outliers, seed=0, heads=2):
    """Normal vectors; outlier channels are that many times larger, as in real keys."""
    rows = torch.randn(count, heads, 64, generator=torch.Generator().manual_seed(seed))
    rows[..., [3, 40]] *= outliers
    return rows


@pytest.mark.parametrize("count", [3, 120])
@pytest.mark.parametrize("outliers", [1, 8, 50])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-4, 1.0, 1e30], ids=str)
@pytest.mark.parametrize("table", [list(range(30)), list(range(31, 1, -1))], ids=["neighbours", "scattered"])
def test_stored_vectors_are_within_half_a_step(count, outliers, magnitude, table):
    """Each element is off by at most 1/254 of the largest of its vector, at any magnitude that float32 holds."""
    cache = int8_cache().layer(0)
    k, v = vectors(count, outliers) * magnitude, vectors(count, outliers, seed=1) * magnitude
    batch = make_batch([count], [count], [table], page_size=4)
    cache.write(k, v, batch.slot_mapping)
    for stored, exact in zip(cache.read(batch, 0), (k, v), strict=True):
        assert stored.dtype == torch.float32
        largest = exact.abs().amax(dim=-1, keepdim=True)
        assert ((stored - exact).abs() <= largest / 254 * (1 + 1e-4)).all()


# Root-mean-square and largest error of an output element relative to the root mean square of the outputs.
BUDGET = {1: (0.015, 0.08), 8: (0.05, 0.25)}


@pytest.mark.parametrize("outliers", BUDGET)
@pytest.mark.parametrize("backend", [ReferenceAttention(), SDPAAttention(), FlexAttention()], ids=lambda b: b.name)
@pytest.mark.parametrize("window", [None, 30])
def test_attention_error_is_within_budget(outliers, backend, window):
    """Decode, prefill and chunks over int8 keys and values against float32, without and with outlier channels."""
    spec = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=64, window=window)
    cache = int8_cache(64, spec).layer(0)
    query_lens, seq_lens = (1, 40, 7, 1), (100, 40, 60, 3)
    tables = [list(range(25)), list(range(40, 30, -1)), list(range(41, 56)), [60]]
    batch = make_batch(query_lens, seq_lens, tables, page_size=4)
    q = torch.randn(49, 6, 64, generator=torch.Generator().manual_seed(5))
    k, v = vectors(203, outliers), vectors(203, 1, seed=1)
    q[..., [3, 40]] /= outliers  # a model that has outlier channels in its keys still spreads its attention
    slots = [table[p // 4] * 4 + p % 4 for table, length in zip(tables, seq_lens, strict=True) for p in range(length)]
    cache.write(k, v, torch.tensor(slots))
    out = backend.attend_cached(q, cache, batch, spec)
    exact = ReferenceAttention().attend(q, k, v, spec, query_lens=query_lens, key_lens=seq_lens)
    size = exact.square().mean().sqrt()
    rms, largest = BUDGET[outliers]
    assert (out - exact).square().mean().sqrt() / size < rms
    assert (out - exact).abs().max() / size < largest
    stored = [torch.cat(parts) for parts in zip(*(cache.read(batch, i, 0) for i in range(4)), strict=True)]
    same = ReferenceAttention().attend(q, *stored, spec, query_lens=query_lens, key_lens=seq_lens)
    torch.testing.assert_close(out, same, atol=4e-6, rtol=4e-6)


def test_zeros_and_what_is_not_finite():
    """A vector of zeros is stored exactly; infinities and NaN are read as NaN, in their own token and head only."""
    cache = int8_cache().layer(0)
    k = torch.ones(4, 2, 64)
    k[0] = 0.0
    k[1, 0, 5] = float("inf")
    k[2, 1, 5] = float("nan")
    cache.write(k, k, torch.arange(4))
    keys, _ = cache.read(make_batch([1], [4], [[0]], page_size=4), 0)
    assert torch.equal(keys[0], k[0])
    assert keys[1, 0].isnan().all()
    assert keys[2, 1].isnan().all()
    torch.testing.assert_close(keys[1, 1], k[1, 1])
    torch.testing.assert_close(keys[2, 0], k[2, 0])
    torch.testing.assert_close(keys[3], k[3])


def test_sizes_count_the_scales():
    """A byte per element and four per token, head and side: 53% of bfloat16 at head dim 64."""
    cache = int8_cache()
    assert cache.nbytes == kv_bytes([SPEC], 128, torch.int8) == 128 * 2 * 2 * (64 + 4)
    assert cache.nbytes / kv_bytes([SPEC], 128, torch.bfloat16) == pytest.approx(0.53125)
    contiguous = ContiguousKVCache([SPEC], num_sequences=2, max_length=8, dtype=torch.int8)
    assert contiguous.nbytes == kv_bytes([SPEC], 16, torch.int8)


def test_latents_are_quantised_too():
    """A latent is one vector: the same bound, with one scale for all of it."""
    cache = PagedKVCache([LatentSpec(rank=48, rope_dim=16)], num_pages=4, page_size=4, dtype=torch.int8)
    k = vectors(9, 1, heads=1)
    batch = make_batch([9], [9], [[3, 0, 1]], page_size=4)
    cache.layer(0).write(k, k[..., :48], batch.slot_mapping)
    keys, values = cache.layer(0).read(batch, 0)
    assert ((keys - k).abs() <= k.abs().amax(dim=-1, keepdim=True) / 254 * (1 + 1e-4)).all()
    assert torch.equal(values, keys[..., :48])
    assert cache.nbytes == 16 * (64 + 4)


def test_flash_attention2_refuses_int8(monkeypatch):
    """A kernel that reads the pages as they are cannot read int8, and the error says what can."""
    monkeypatch.setattr(_flash_attention2, "_load_varlen", lambda: None)
    monkeypatch.setattr(_flash_attention2, "_check_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cache = PagedKVCache([SPEC], num_pages=1, page_size=256, dtype=torch.int8).layer(0)
    q = torch.zeros(1, 6, 64).half()
    with pytest.raises(UnsupportedError, match=r"torch.float16, got torch.int8 \(make the cache in that dtype, or use"):
        FlashAttention2().attend_cached(q, cache, make_batch([1], [1], page_size=256), SPEC)
