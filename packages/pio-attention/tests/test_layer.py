"""The attention module: writes, then attends."""

from __future__ import annotations

import torch

from inference_pio.attention import Attention, ContiguousKVCache, ReferenceAttention, SDPAAttention, make_batch


def test_writes_its_own_layer_then_attends(small_spec, make_qkv):
    """Prefill and decode through the module give the reference over all keys; other layers are left alone."""
    cache = ContiguousKVCache([small_spec] * 3, num_sequences=1, max_length=8, dtype=torch.float32)
    for index in range(3):
        cache.layer(index).key_pages.zero_()
    attention = Attention(small_spec, layer=1, backend=SDPAAttention())
    q, k, v = make_qkv(small_spec, 6, 6)
    prefill = attention(q[:5], k[:5], v[:5], cache, make_batch([5], [5], page_size=8))
    decode = attention(q[5:], k[5:], v[5:], cache, make_batch([1], [6], page_size=8))
    expected = ReferenceAttention().attend(q, k, v, small_spec, query_lens=(6,), key_lens=(6,))
    torch.testing.assert_close(torch.cat([prefill, decode]), expected, atol=2e-6, rtol=0)
    assert torch.equal(cache.layer(1).key_pages[0, :6], k)
    assert not cache.layer(0).key_pages.any()
    assert not cache.layer(2).key_pages.any()


def test_has_no_state_and_says_what_it_is(small_spec):
    """No parameters, no buffers; repr names layer and backend."""
    attention = Attention(small_spec, layer=4, backend=SDPAAttention())
    assert not attention.state_dict()
    assert "layer=4, backend=sdpa" in repr(attention)
