"""The invariant backend: the reference's numbers, and for each query the same bits in any circumstances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.attention import PagedKVCache, ReferenceAttention, get_backend, make_batch
from inference_pio.attention import _invariant as invariant
from inference_pio.attention._invariant import InvariantAttention
from inference_pio.interfaces import AttentionBackend, AttentionSpec, UnsupportedError

LENGTH = 620  # more than two blocks of keys and of queries
DTYPES = [torch.float32, torch.bfloat16]


def spec_of(heads, reach=(True, None), head_dim=16):
    return AttentionSpec(num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, causal=reach[0], window=reach[1])


@pytest.fixture(scope="module")
def backend():
    return InvariantAttention()


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def sequence(spec, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    return [torch.randn(LENGTH, count, spec.head_dim, generator=generator).to(dtype) for count in heads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_invariant_attend_equals_reference(backend, heads, reach, dtype, tolerance, ragged, make_qkv, assert_close):
    """Packed sequences: the reference's numbers for every head layout, reach and raggedness."""
    spec = spec_of(heads, reach)
    for query_lens, key_lens in ragged:
        q, k, v = make_qkv(spec, sum(query_lens), sum(key_lens), dtype)
        out = backend.attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
        expected = ReferenceAttention().attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
        assert out.dtype == dtype
        assert_close(out, expected, tolerance, f"query_lens, key_lens = {query_lens}, {key_lens}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 70, 300])
@pytest.mark.parametrize("layout", [(4, 4), (9, 3), (4, 1), (1, 1), (40, 40)])
def test_decoding_gives_the_bits_of_prefill(backend, layout, window, dtype, threads):
    """A token's result is the same alone, with the whole prompt before it, and with the rest of the prompt after it."""
    spec = spec_of(layout, (True, window))
    q, k, v = sequence(spec, dtype, 1)
    whole = backend.attend(q, k, v, spec, query_lens=(LENGTH,), key_lens=(LENGTH,))
    for position in [*range(0, 70, 7), *range(70, LENGTH, 61), 1, 2, 63, 64, 255, 256, 257, 511, 512, LENGTH - 1]:
        end = position + 1
        alone = backend.attend(q[position:end], k[:end], v[:end], spec, query_lens=(1,), key_lens=(end,))
        assert torch.equal(alone[0], whole[position]), f"position {position}"


@st.composite
def steps(draw):
    """Sequences of a step as (seed, first position, end), their pages in any order, and the page size."""
    page_size = draw(st.sampled_from([4, 16, 64]))
    members = []
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.integers(1, LENGTH))
        members.append((draw(st.integers(1, 2)), max(0, end - draw(st.sampled_from([1, 2, 9, 40, 300, LENGTH]))), end))
    counts = [-(-end // page_size) for _, _, end in members]
    pages = list(range(sum(counts) + 3))
    if draw(st.booleans()):
        pages = draw(st.permutations(pages))
    tables = [[pages.pop() for _ in range(count)][::-1] for count in counts]
    return members, tables, page_size


@settings(deadline=None, max_examples=25)
@given(
    step=steps(),
    heads=st.sampled_from([(9, 3), (4, 4), (2, 1)]),
    window=st.sampled_from([None, 33, 280]),
    dtype=st.sampled_from(DTYPES),
    num_threads=st.integers(1, 2),
)
def test_any_step_gives_each_token_its_own_bits(step, heads, window, dtype, num_threads):
    """Whatever company, chunks and pages: a token's result is that of its sequence alone in one prefill."""
    members, tables, page_size = step
    spec, serving, before = spec_of(heads, (True, window)), InvariantAttention(), torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        wholes = {}
        for seed, _, _ in members:
            q, k, v = sequence(spec, dtype, seed)
            wholes[seed] = serving.attend(q, k, v, spec, query_lens=(LENGTH,), key_lens=(LENGTH,))
        cache = PagedKVCache([spec], num_pages=max(map(max, tables)) + 1, page_size=page_size, dtype=dtype).layer(0)
        cache.key_pages.fill_(float("nan"))  # what no token was stored to must not matter
        cache.value_pages.fill_(float("nan"))
        ends = [end for _, _, end in members]
        everything = make_batch(ends, ends, tables, page_size=page_size)
        stored = [[part[:end] for part in sequence(spec, dtype, seed)[1:]] for seed, _, end in members]
        cache.write(*(torch.cat(parts) for parts in zip(*stored, strict=True)), everything.slot_mapping)
        batch = make_batch([end - start for _, start, end in members], ends, tables, page_size=page_size)
        if window is not None:  # pages that the window has left behind were given back
            for row, (_, start, _) in enumerate(members):
                batch.block_tables[row, : max(0, start - window + 1) // page_size] = -1
        queries = torch.cat([sequence(spec, dtype, seed)[0][start:end] for seed, start, end in members])
        out = serving.attend_cached(queries, cache, batch, spec)
        expected = torch.cat([wholes[seed][start:end] for seed, start, end in members])
        assert torch.equal(out, expected)
    finally:
        torch.set_num_threads(before)


def test_invariant_is_registered_and_takes_empty_steps(small_spec):
    """It is made by name, satisfies the contract, and an empty step gives an empty output."""
    made = get_backend("invariant")
    assert isinstance(made, AttentionBackend)
    assert made.name == "invariant"
    cache = PagedKVCache([small_spec], num_pages=1, dtype=torch.float32).layer(0)
    out = made.attend_cached(torch.empty(0, 4, 8), cache, make_batch([], [], [], page_size=16), small_spec)
    assert out.shape == (0, 4, 8)


def test_invariant_refuses_products_that_depend_on_their_size(monkeypatch):
    """A machine whose products fail the check is refused, with the way out."""
    monkeypatch.setattr(invariant, "_product", lambda x, w: x @ w.t() + len(x))
    with pytest.raises(UnsupportedError, match="cannot keep its promise: oneDNN's products on this machine depend"):
        InvariantAttention()


def test_invariant_refuses_other_devices(backend, small_spec):
    """Tensors elsewhere are an error that names the device."""
    q, k = torch.empty(1, 4, 8, device="meta"), torch.empty(1, 2, 8, device="meta")
    with pytest.raises(UnsupportedError, match="computes on CPUs, not on meta"):
        backend.attend(q, k, k, small_spec, query_lens=(1,), key_lens=(1,))


def test_invariant_wrong_query_shape_is_refused(backend, small_spec):
    """The message names the expected and the given shape."""
    q, k = torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)
    with pytest.raises(ValueError, match=r"queries must have shape \(3, 4, 8\), got \(3, 2, 8\)"):
        backend.attend(q, k, k, small_spec, query_lens=(3,), key_lens=(3,))
