"""Latent attention (MLA): one vector per token, stored once, held to the un-absorbed form written out."""

from __future__ import annotations

import pytest
import torch

from inference_pio.attention import (
    Attention,
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

HEADS, RANK, ROPE, NOPE, VALUE = 4, 16, 8, 12, 10
SCALE = (NOPE + ROPE) ** -0.5
SPEC = AttentionSpec(num_heads=HEADS, num_kv_heads=1, head_dim=RANK + ROPE, value_dim=RANK, scale=SCALE)
LATENT = LatentSpec(rank=RANK, rope_dim=ROPE)


def draw(tokens):
    """Queries, latents, rotary keys and the up-projections of keys and values, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (tokens, HEADS, NOPE),
        (tokens, HEADS, ROPE),
        (tokens, RANK),
        (tokens, ROPE),
        (HEADS, NOPE, RANK),
        (HEADS, VALUE, RANK),
    ]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def explicit(q_nope, q_rope, latent, k_rope, up_k, up_v):
    """Multi-head latent attention as DeepSeek-V2 defines it (arXiv:2405.04434, equations 9 to 19): keys and values of
    every head are projected from the latent, the rotary key is shared."""
    tokens = latent.shape[0]
    out = torch.zeros(tokens, HEADS, VALUE)
    for head in range(HEADS):
        keys = torch.cat([latent @ up_k[head].T, k_rope], dim=1)
        values = latent @ up_v[head].T
        queries = torch.cat([q_nope[:, head], q_rope[:, head]], dim=1)
        scores = (queries @ keys.T * SCALE).masked_fill(torch.ones(tokens, tokens).triu(1).bool(), float("-inf"))
        out[:, head] = scores.softmax(dim=-1) @ values
    return out


def absorbed(attend, q_nope, q_rope, latent, k_rope, up_k, up_v):
    """The same through a latent cache: the key projection moves into the query, the value's behind the sum."""
    q = torch.cat([torch.einsum("thn,hnr->thr", q_nope, up_k), q_rope], dim=-1)
    k = torch.cat([latent, k_rope], dim=-1).unsqueeze(1)
    return torch.einsum("thr,hvr->thv", attend(q, k, k[..., :RANK]), up_v)


@pytest.mark.parametrize(
    "backend", [ReferenceAttention(), SDPAAttention(), FlexAttention()], ids=lambda backend: backend.name
)
@pytest.mark.parametrize("chunks", [(40,), (9, 1, 1, 20, 9), (39, 1)], ids=str)
@pytest.mark.parametrize("kind", ["neighbours", "scattered", "contiguous"])
def test_latent_cache_equals_explicit_attention(backend, chunks, kind):
    """Prefill, chunks and decode through the latent cache give the un-absorbed attention over the whole sequence."""
    inputs = draw(40)
    table = {"neighbours": list(range(10)), "scattered": [9, 3, 4, 5, 0, 1, 8, 7, 6, 2], "contiguous": [0]}[kind]
    if kind == "contiguous":
        cache = ContiguousKVCache([LATENT], num_sequences=1, max_length=40, dtype=torch.float32)
    else:
        cache = PagedKVCache([LATENT], num_pages=10, page_size=4, dtype=torch.float32)
    layer = Attention(SPEC, layer=0, backend=backend)

    def attend(q, k, v):
        done, parts = 0, []
        for chunk in chunks:
            rows = slice(done, done + chunk)
            done += chunk
            batch = make_batch([chunk], [done], [table], page_size=cache.page_size)
            parts.append(layer(q[rows], k[rows], v[rows], cache, batch))
        return torch.cat(parts)

    torch.testing.assert_close(absorbed(attend, *inputs), explicit(*inputs), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "backend", [ReferenceAttention(), SDPAAttention(), FlexAttention()], ids=lambda backend: backend.name
)
def test_packed_latent_equals_explicit_attention(backend):
    """Without a cache, values of another size than keys are attended to as well."""
    inputs = draw(300)

    def attend(q, k, v):
        return backend.attend(q, k, v, SPEC, query_lens=(300,), key_lens=(300,))

    torch.testing.assert_close(absorbed(attend, *inputs), explicit(*inputs), atol=2e-5, rtol=1e-4)


def test_a_latent_is_stored_once():
    """Values are a view of the leading elements of the keys, in memory and in size."""
    cache = PagedKVCache([LATENT, LATENT], num_pages=5, page_size=4, dtype=torch.bfloat16)
    layer = cache.layer(1)
    assert layer.key_pages.shape == (5, 4, 1, RANK + ROPE)
    assert layer.value_pages.shape == (5, 4, 1, RANK)
    assert layer.value_pages.data_ptr() == layer.key_pages.data_ptr()
    assert cache.nbytes == 2 * 20 * (RANK + ROPE) * 2 == kv_bytes([LATENT, LATENT], 20, torch.bfloat16)


def test_shapes_of_a_latent_are_checked():
    """Keys and values have sizes of their own, and the message names both."""
    cache = PagedKVCache([LATENT], num_pages=5, page_size=4, dtype=torch.float32).layer(0)
    k = torch.zeros(3, 1, RANK + ROPE)
    with pytest.raises(ValueError, match=r"shape \(3, 1, 24\) and \(3, 1, 16\), got \(3, 1, 24\) and \(3, 1, 24\)"):
        cache.write(k, k, torch.arange(3))
    backend = SDPAAttention()
    q = torch.zeros(3, HEADS, RANK + ROPE)
    with pytest.raises(ValueError, match=r"values must have shape \(3, 1, 16\), got \(3, 1, 24\)"):
        backend.attend(q, k, k, SPEC, query_lens=(3,), key_lens=(3,))


@pytest.mark.parametrize(
    "backend", [ReferenceAttention(), SDPAAttention(), FlexAttention()], ids=lambda backend: backend.name
)
def test_nothing_has_the_shape_of_values(backend):
    """No queries, or no keys, give outputs of the size of a value."""
    q, k, v = torch.zeros(0, HEADS, 24), torch.zeros(0, 1, 24), torch.zeros(0, 1, 16)
    assert backend.attend(q, k, v, SPEC, query_lens=(), key_lens=()).shape == (0, HEADS, 16)
    some = torch.ones(2, HEADS, 24)
    out = backend.attend(some, k, v, SPEC, query_lens=(2,), key_lens=(0,))
    assert torch.equal(out, torch.zeros(2, HEADS, 16))
    cache = PagedKVCache([LATENT], num_pages=1, dtype=torch.float32).layer(0)
    assert backend.attend_cached(q, cache, make_batch([], [], [], page_size=16), SPEC).shape == (0, HEADS, 16)


def test_flash_attention2_refuses_other_value_dims(monkeypatch):
    """Its kernel has one head dim for all."""
    monkeypatch.setattr(_flash_attention2, "_load_varlen", lambda: None)
    monkeypatch.setattr(_flash_attention2, "_check_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    q, k, v = (torch.zeros(2, heads, size).half() for heads, size in ((HEADS, 24), (1, 24), (1, 16)))
    with pytest.raises(UnsupportedError, match=r"needs values of the head dim 24, got 16 \(use sdpa\)"):
        FlashAttention2().attend(q, k, v, SPEC, query_lens=(2,), key_lens=(2,))
