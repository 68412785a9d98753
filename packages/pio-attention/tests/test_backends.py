"""Each backend held to the reference over the grid of conftest.py."""

from __future__ import annotations

import pytest
import torch

from inference_pio.attention import (
    FlexAttention,
    PagedKVCache,
    ReferenceAttention,
    SDPAAttention,
    make_batch,
)
from inference_pio.interfaces import AttentionBackend, AttentionSpec

BACKENDS = {"sdpa": SDPAAttention, "flex": FlexAttention}


def spec_of(heads, reach, head_dim=16, scale=None):
    return AttentionSpec(
        num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, scale=scale, causal=reach[0], window=reach[1]
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("sdpa", torch.float32),
        ("sdpa", torch.float16),
        ("sdpa", torch.bfloat16),
        ("flex", torch.float32),
        ("flex", torch.bfloat16),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_attend_equals_reference(name, heads, reach, dtype, tolerance, ragged, make_qkv, assert_close):
    """Packed sequences: every backend gives the reference's numbers for every head layout, reach and raggedness."""
    spec, backend = spec_of(heads, reach), BACKENDS[name]()
    for query_lens, key_lens in ragged:
        q, k, v = make_qkv(spec, sum(query_lens), sum(key_lens), dtype)
        with torch.inference_mode():
            out = backend.attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
            expected = ReferenceAttention().attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
        assert_close(out, expected, tolerance, f"query_lens, key_lens = {query_lens}, {key_lens}")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
def test_attend_cached_equals_reference(name, cache_dtype, heads, reach, make_qkv, fill):
    """Over a paged cache, with neighbouring and with scattered pages, every backend gives the reference's numbers."""
    spec = spec_of(heads, reach)
    query_lens, seq_lens = (1, 6, 3, 1), (21, 6, 10, 4)
    tables = [[9, 2, 11, 4, 0, 7], [5, 6], [13, 12, 3], [8]]
    batch = make_batch(query_lens, seq_lens, tables, page_size=4)
    q, k, v = make_qkv(spec, sum(query_lens), sum(seq_lens))
    cache = PagedKVCache([spec], num_pages=14, page_size=4, dtype=cache_dtype).layer(0)
    fill(cache, batch, k, v, 4)
    with torch.inference_mode():
        out = BACKENDS[name]().attend_cached(q, cache, batch, spec)
        stored_k, stored_v = k.to(cache_dtype).float(), v.to(cache_dtype).float()
        expected = ReferenceAttention().attend(q, stored_k, stored_v, spec, query_lens=query_lens, key_lens=seq_lens)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)


def test_reference_attends_cached_as_packed(reach, make_qkv, fill):
    """The reference over a cache is the reference over the same keys packed, bit for bit."""
    spec = spec_of((4, 2), reach)
    batch = make_batch((2, 1), (7, 5), [[3, 1], [0, 2]], page_size=4)
    q, k, v = make_qkv(spec, 3, 12)
    cache = PagedKVCache([spec], num_pages=4, page_size=4, dtype=torch.float32).layer(0)
    fill(cache, batch, k, v, 4)
    out = ReferenceAttention().attend_cached(q, cache, batch, spec)
    expected = ReferenceAttention().attend(q, k, v, spec, query_lens=(2, 1), key_lens=(7, 5))
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    "backend", [ReferenceAttention(), *(make() for make in BACKENDS.values())], ids=lambda b: b.name
)
class TestEveryBackend:
    def test_satisfies_the_contract(self, backend):
        """A backend is an AttentionBackend."""
        assert isinstance(backend, AttentionBackend)

    def test_scale_is_applied(self, backend, make_qkv):
        """A given scale replaces head_dim ** -0.5."""
        spec = spec_of((4, 2), (True, None), scale=0.7)
        q, k, v = make_qkv(spec, 5, 5)
        out = backend.attend(q, k, v, spec, query_lens=(5,), key_lens=(5,))
        default = spec_of((4, 2), (True, None))
        same = backend.attend(q * 0.7 * 16**0.5, k, v, default, query_lens=(5,), key_lens=(5,))
        torch.testing.assert_close(out, same, atol=2e-6, rtol=0)

    @pytest.mark.parametrize("head_dim", [1, 6, 80, 256])
    def test_any_head_dim(self, backend, head_dim, make_qkv):
        """Head dims that no kernel is tuned for are right too."""
        spec = spec_of((4, 2), (True, None), head_dim=head_dim)
        q, k, v = make_qkv(spec, 4, 10)
        out = backend.attend(q, k, v, spec, query_lens=(1, 3), key_lens=(4, 6))
        expected = ReferenceAttention().attend(q, k, v, spec, query_lens=(1, 3), key_lens=(4, 6))
        torch.testing.assert_close(out, expected, atol=4e-6, rtol=1e-5)

    def test_takes_views_of_a_merged_projection(self, backend, make_qkv):
        """Queries, keys and values may be strided views of one tensor, as a merged projection gives them."""
        spec = spec_of((4, 2), (True, None))
        merged = torch.cat([tensor.flatten(1) for tensor in make_qkv(spec, 9, 9)], dim=1)
        views = [part.view(9, -1, 16) for part in merged.split_with_sizes((4 * 16, 2 * 16, 2 * 16), dim=1)]
        copies = [part.contiguous() for part in views]
        out = backend.attend(*views, spec, query_lens=(6, 3), key_lens=(6, 3))
        assert torch.equal(out, backend.attend(*copies, spec, query_lens=(6, 3), key_lens=(6, 3)))

    def test_empty_cached_batch(self, backend, small_spec):
        """A step without sequences gives an empty output."""
        cache = PagedKVCache([small_spec], num_pages=1, dtype=torch.float32).layer(0)
        out = backend.attend_cached(torch.empty(0, 4, 8), cache, make_batch([], [], [], page_size=16), small_spec)
        assert out.shape == (0, 4, 8)

    def test_wrong_query_shape_is_refused(self, backend, small_spec):
        """The message names the expected and the given shape."""
        q, k = torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)
        with pytest.raises(ValueError, match=r"queries must have shape \(3, 4, 8\), got \(3, 2, 8\)"):
            backend.attend(q, k, k, small_spec, query_lens=(3,), key_lens=(3,))
        cache = PagedKVCache([small_spec], num_pages=1, dtype=torch.float32).layer(0)
        with pytest.raises(ValueError, match=r"queries must have shape \(1, 4, 8\), got \(3, 2, 8\)"):
            backend.attend_cached(q, cache, make_batch([1], [1], page_size=16), small_spec)

    def test_wrong_keys_are_refused(self, backend, small_spec):
        """Keys and values must fit the lengths, the spec and the dtype of the queries."""
        q, k = torch.zeros(3, 4, 8), torch.zeros(3, 2, 8)
        with pytest.raises(ValueError, match=r"keys must have shape \(4, 2, 8\), got \(3, 2, 8\)"):
            backend.attend(q, k, k, small_spec, query_lens=(3,), key_lens=(4,))
        with pytest.raises(ValueError, match=r"values must have the dtype of the queries, torch.float32, got torch.f"):
            backend.attend(q, k, k.half(), small_spec, query_lens=(3,), key_lens=(3,))
        with pytest.raises(ValueError, match="query_lens has 1 sequences, key_lens has 2"):
            backend.attend(q, k, k, small_spec, query_lens=(3,), key_lens=(2, 1))


def test_sdpa_reads_only_the_window(small_spec, make_qkv):
    """At decode with a sliding window no key before the window is asked of the cache."""
    spec = spec_of((4, 2), (True, 5), head_dim=8)
    cache = PagedKVCache([spec], num_pages=16, page_size=4, dtype=torch.float32).layer(0)
    starts = []

    class Recorder:
        page_size, key_pages, value_pages, write = cache.page_size, cache.key_pages, cache.value_pages, cache.write

        def read(self, batch, index, start=0):
            starts.append(start)
            return cache.read(batch, index, start)

    batch = make_batch([1, 3], [30, 20], [list(range(8)), list(range(8, 13))], page_size=4)
    q, k, v = make_qkv(spec, 4, 4)
    cache.write(k, v, batch.slot_mapping)
    SDPAAttention().attend_cached(q, Recorder(), batch, spec)
    assert starts == [30 - 5, 20 - 3 - 5 + 1]


@pytest.mark.slow
# torch.compile of torch 2.11 warns about torch's own use of torch.jit when it is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_flex_equals_reference(make_qkv):
    """The compiled kernel gives the reference's numbers, for one head layout, several reaches and raggedness."""
    backend = FlexAttention(compile=True)
    for reach in ((True, None), (True, 5), (False, None), (False, 4)):
        for query_lens, key_lens in (((7, 3), (7, 20)), ((1, 1, 1), (5, 9, 33)), ((40,), (90,)), ((2, 3), (0, 4))):
            spec = spec_of((9, 3), reach, head_dim=64)
            q, k, v = make_qkv(spec, sum(query_lens), sum(key_lens))
            with torch.inference_mode():
                out = backend.attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
            expected = ReferenceAttention().attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
            torch.testing.assert_close(out, expected, atol=4e-6, rtol=1e-5)
