"""Groups of layers: pages of their own, copies, swaps, windows that give pages back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference_pio.attention import (
    Attention,
    ContiguousKVCache,
    FlexAttention,
    PagedKVCache,
    ReferenceAttention,
    SDPAAttention,
    make_batch,
    ragged_batch,
)
from inference_pio.interfaces import (
    AttentionSpec,
    CacheGroup,
    GroupTables,
    KVCache,
    KVSpec,
    LatentSpec,
    LayerKVCache,
    LayerStateCache,
    RaggedBatch,
    StateSpec,
    StepBatch,
)

FULL = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8)
WINDOW = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, window=6)
STATE = StateSpec(shapes=((3,), (2, 5)))
LATENT = LatentSpec(rank=6, rope_dim=2)


def mixed(**options):
    specs = [WINDOW, FULL, STATE, LATENT, WINDOW]
    return PagedKVCache(specs, page_size=4, **{"dtype": torch.float32, "num_pages": (9, 7, 5), **options})


def fill_pages(cache):
    """Give every element of the storage a value of its own page: layer-dependent, the same within a page."""
    for index in range(5):
        tensors = cache.state(index).tensors if index == 2 else cache.layer(index).tensors
        for number, tensor in enumerate(tensors):
            pages = torch.arange(tensor.shape[0]) + 10 * index + number
            tensor.copy_(pages.view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor))


def snapshot(cache):
    return [
        [tensor.clone() for tensor in (cache.state(i).tensors if i == 2 else cache.layer(i).tensors)] for i in range(5)
    ]


def test_layers_are_grouped_by_what_they_keep():
    """Full and latent layers share tables, windows have their own, states come last; each with its own pages."""
    cache = mixed(num_host_pages=(2, 0, 1))
    assert cache.groups == (
        CacheGroup(kind="full", num_pages=9, num_host_pages=2),
        CacheGroup(kind="window", window=6, num_pages=7),
        CacheGroup(kind="state", num_pages=5, num_host_pages=1),
    )
    assert [cache.layer(i).group for i in (0, 1, 3, 4)] == [1, 0, 0, 1]
    assert cache.state(2).group == 2
    assert cache.num_pages == 9
    assert cache.layer(1).key_pages.shape == (9, 4, 2, 8)
    assert cache.layer(0).key_pages.shape == (7, 4, 2, 8)
    assert isinstance(cache, KVCache)
    assert isinstance(cache.layer(3), LayerKVCache)
    assert isinstance(cache.state(2), LayerStateCache)


def test_sizes_count_every_group():
    """Bytes on the device and on the host, per group its own number of pages."""
    cache = mixed(num_host_pages=(2, 0, 1), dtype=torch.bfloat16)
    kv, latent, state = 2 * 2 * 8 * 2 * 4, 8 * 2 * 4, (3 + 10) * 4
    assert cache.nbytes == 9 * (kv + latent) + 7 * 2 * kv + 5 * state
    assert cache.host_nbytes == 2 * (kv + latent) + state


def test_one_count_serves_all_groups():
    """An int is the number of pages of every group; a wrong number of counts is refused."""
    assert [group.num_pages for group in mixed(num_pages=3).groups] == [3, 3, 3]
    with pytest.raises(ValueError, match="num_pages has 2 entries, the layers form 3 groups"):
        mixed(num_pages=(3, 4))
    with pytest.raises(ValueError, match="num_host_pages has 1 entries, the layers form 3 groups"):
        mixed(num_host_pages=(3,))


def test_kinds_are_not_mixed_up():
    """Asking a state for keys, or keys for a state, says what to ask instead."""
    with pytest.raises(ValueError, match=r"layer 2 keeps a state, not keys and values: ask for state\(2\)"):
        mixed().layer(2)
    with pytest.raises(ValueError, match=r"layer 3 keeps keys and values, not a state: ask for layer\(3\)"):
        mixed().state(3)


def test_unclear_specs_and_dtypes_are_refused():
    """Values of another size than keys need a spec that says how they are kept; int32 is no dtype."""
    with pytest.raises(ValueError, match="give a LatentSpec for a layer with head_dim 8 and value_dim 6"):
        PagedKVCache(
            [AttentionSpec(num_heads=4, num_kv_heads=1, head_dim=8, value_dim=6)], num_pages=1, dtype=torch.float32
        )
    with pytest.raises(ValueError, match=r"a floating-point dtype or in torch.int8, got torch.int32"):
        PagedKVCache([FULL], num_pages=1, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("group", [0, 1, 2])
@pytest.mark.parametrize(
    ("sources", "targets"),
    [([], []), ([1], [3]), ([0, 3], [3, 4]), ([0, 1], [1, 0]), ([2, 4, 2], [4, 2, 0]), ([1, 2], [0, 0]), ([3], [3])],
    ids=str,
)
def test_copies_happen_one_after_the_other(dtype, group, sources, targets):
    """Chains, swaps and overwritten targets come out as if each copy waited for the one before; other groups stay."""
    cache = mixed(dtype=dtype)
    fill_pages(cache)
    expected = snapshot(cache)
    for index, tensors in enumerate(expected):
        if [1, 0, 2, 0, 1][index] == group:
            for tensor in tensors:
                for source, target in zip(sources, targets, strict=True):
                    tensor[target] = tensor[source]
    cache.copy_pages(group, sources, targets)
    for found, wanted in zip(snapshot(cache), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_swapped_pages_come_back(dtype, device):
    """Pages moved to the host, overwritten and moved back elsewhere hold what they held."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    cache = mixed(num_host_pages=4, dtype=dtype, device=device)
    fill_pages(cache)
    before = snapshot(cache)
    for group in range(3):
        cache.swap_out(group, [4, 0, 2], [1, 2, 0])
        cache.copy_pages(group, [1, 1, 1], [4, 0, 2])
        cache.swap_in(group, [2, 0, 1], [3, 4, 0])
    for old, new in zip(before, snapshot(cache), strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(b[[3, 4, 0, 1]], a[[0, 2, 4, 1]])
            assert torch.equal(b[2], a[1])


def test_host_memory_beside_cuda_is_pinned():
    """What is copied without waiting lies in pinned memory."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    cache = mixed(num_host_pages=2, device="cuda")
    assert all(tensor.is_pinned() for tensors in cache._storage._host_tensors for tensor in tensors)


def test_pages_outside_the_group_are_refused():
    """Copies and swaps name pages of the group, as many on either side."""
    cache = mixed(num_host_pages=2)
    with pytest.raises(ValueError, match="1 sources and 2 targets must be the same number"):
        cache.copy_pages(0, [1], [2, 3])
    with pytest.raises(ValueError, match="targets: page 7 is outside the group's 7 pages"):
        cache.copy_pages(1, [1], [7])
    with pytest.raises(ValueError, match="sources: page -1 is outside the group's 9 pages"):
        cache.copy_pages(0, [-1], [2])
    with pytest.raises(ValueError, match="host_pages: page 2 is outside the group's 2 pages"):
        cache.swap_out(0, [1], [2])
    with pytest.raises(ValueError, match="pages: page 5 is outside the group's 5 pages"):
        cache.swap_in(2, [0], [5])
    contiguous = ContiguousKVCache([FULL], num_sequences=2, max_length=4, dtype=torch.float32)
    with pytest.raises(ValueError, match="host_pages: page 0 is outside the group's 0 pages"):
        contiguous.swap_out(0, [0], [0])


def test_contiguous_cache_is_one_group():
    """One page is one sequence for every kind of layer, so one block table serves all; copies copy whole sequences."""
    cache = ContiguousKVCache([WINDOW, FULL, STATE, LATENT], num_sequences=3, max_length=8, dtype=torch.float32)
    assert cache.groups == (CacheGroup(kind="full", num_pages=3),)
    assert cache.state(2).group == cache.layer(0).group == 0
    batch = make_batch([2], [2], [[1]], page_size=8)
    k = torch.randn(2, 2, 8)
    cache.layer(0).write(k, k, batch.slot_mapping)
    states = (torch.ones(1, 3), torch.ones(1, 2, 5))
    cache.state(2).write(batch, states)
    cache.copy_pages(0, [1], [2])
    fork = make_batch([1], [2], [[2]], page_size=8)
    assert torch.equal(cache.layer(0).read(fork, 0)[0], k)
    assert all(torch.equal(a, b) for a, b in zip(cache.state(2).read(fork), states, strict=True))


def test_step_reaches_every_group():
    """The engine's arrays become one view of the step per group, with the same lengths."""
    step = StepBatch(
        token_ids=np.zeros(3, np.int64),
        positions=np.array([4, 5, 0]),
        query_starts=np.array([0, 2, 3], np.int32),
        seq_lens=np.array([6, 1], np.int32),
        block_tables=np.array([[3, 1], [0, -1]], np.int32),
        slot_mapping=np.array([4, 5, 0]),
        logit_rows=np.array([1, 2]),
        others=(
            GroupTables(block_tables=np.array([[-1, 2], [4, -1]], np.int32), slot_mapping=np.array([8, 9, 16])),
            GroupTables(block_tables=np.array([[1], [0]], np.int32), slot_mapping=np.zeros(0, np.int64)),
        ),
    )
    batch = ragged_batch(step)
    assert len(batch.others) == 2
    for index, tables in enumerate([step, *step.others]):
        view = batch.group(index)
        assert (view.query_lens, view.seq_lens) == ((2, 1), (6, 1))
        assert view.query_starts.tolist() == [0, 2, 3]
        assert view.block_tables.tolist() == tables.block_tables.tolist()
        assert view.slot_mapping.tolist() == tables.slot_mapping.tolist()


def grouped(first, other):
    return RaggedBatch(
        query_lens=first.query_lens,
        seq_lens=first.seq_lens,
        query_starts=first.query_starts,
        block_tables=first.block_tables,
        slot_mapping=first.slot_mapping,
        others=(other,),
    )


@pytest.mark.parametrize(
    "backend", [ReferenceAttention(), SDPAAttention(), FlexAttention()], ids=lambda backend: backend.name
)
def test_attention_takes_its_groups_view(backend):
    """A full and a sliding layer of one model, each through its own tables, equal the same over contiguous caches."""
    paged = PagedKVCache([FULL, WINDOW], num_pages=6, page_size=4, dtype=torch.float32)
    plain = ContiguousKVCache([FULL, WINDOW], num_sequences=1, max_length=16, dtype=torch.float32)
    for index in (0, 1):
        paged.layer(index).key_pages.fill_(float("nan"))
    layers = [Attention(spec, layer=index, backend=backend) for index, spec in enumerate((FULL, WINDOW))]
    generator = torch.Generator().manual_seed(0)
    for queries, length, window_table in ((9, 9, [5, 3, 1]), (1, 10, [5, 3, 1]), (3, 13, [5, 3, 1, 0])):
        q, k, v = (torch.randn(queries, heads, 8, generator=generator) for heads in (4, 2, 2))
        full = make_batch([queries], [length], [[0, 4, 2, 5]], page_size=4)
        window = make_batch([queries], [length], [window_table], page_size=4)
        batch, one = grouped(full, window), make_batch([queries], [length], [[0]], page_size=16)
        for layer in layers:
            torch.testing.assert_close(layer(q, k, v, paged, batch), layer(q, k, v, plain, one), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("table", [[-1, -1, 5, 2], [-1, -1, 3, 4]], ids=["scattered", "neighbours"])
@pytest.mark.parametrize(
    "backend", [ReferenceAttention(), SDPAAttention(), FlexAttention()], ids=lambda backend: backend.name
)
def test_pages_given_back_are_not_touched(backend, table):
    """Leading -1 in a window's table: what is visible is read, whatever lies in the pages that were given back."""
    cache = PagedKVCache([WINDOW], num_pages=6, page_size=4, dtype=torch.float32).layer(0)
    cache.key_pages.fill_(float("nan"))
    cache.value_pages.fill_(float("nan"))
    batch = make_batch([1], [14], [[0, 1, *table[2:]]], page_size=4)
    batch.block_tables[0, :2] = -1
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(count, heads, 8, generator=generator) for count, heads in ((1, 4), (14, 2), (14, 2)))
    slots = torch.tensor([table[position // 4] * 4 + position % 4 for position in range(8, 14)])
    cache.write(k[8:], v[8:], slots)
    out = backend.attend_cached(q, cache, batch, WINDOW)
    expected = ReferenceAttention().attend(q, k, v, WINDOW, query_lens=(1,), key_lens=(14,))
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)
    assert torch.equal(cache.read(batch, 0, 9)[0], k[9:])


def test_reading_a_page_given_back_is_refused():
    """A start before what is still there is a mistake, and so is a hole in a layer that keeps every token."""
    window = PagedKVCache([WINDOW], num_pages=6, page_size=4, dtype=torch.float32).layer(0)
    batch = make_batch([1], [14], [[0, 1, 2, 3]], page_size=4)
    batch.block_tables[0, 0] = -1
    with pytest.raises(ValueError, match="sequence 0: page -1 is outside the cache: given back before position 3"):
        window.read(batch, 0, 3)
    assert window.read(batch, 0, 4)[0].shape == (10, 2, 8)
    full = PagedKVCache([KVSpec(num_kv_heads=2, head_dim=8)], num_pages=6, page_size=4, dtype=torch.float32).layer(0)
    with pytest.raises(ValueError, match="sequence 0: page -1 is outside the cache's 6 pages"):
        full.read(batch, 0, 4)
