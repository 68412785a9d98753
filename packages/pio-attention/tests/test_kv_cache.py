"""Contiguous and paged caches: what is written is read, wherever the pages lie."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.attention import (
    Attention,
    ContiguousKVCache,
    PagedKVCache,
    ReferenceAttention,
    SDPAAttention,
    kv_bytes,
    make_batch,
)
from inference_pio.interfaces import AttentionSpec, DoesNotFitError, KVCache, LayerKVCache

SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8)


def paged(num_pages=16, page_size=4, dtype=torch.float32):
    return PagedKVCache([SPEC], num_pages=num_pages, page_size=page_size, dtype=dtype)


def random_kv(count, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 2, 8, generator=generator).to(dtype) for _ in range(2))


@pytest.mark.parametrize("table", [[3, 4, 5, 6], [9, 2, 15, 0], [6, 5, 4, 3]], ids=str)
@pytest.mark.parametrize("start", [0, 1, 4, 9, 12, 13])
def test_read_gives_what_was_written(table, start):
    """Prefill in two parts and read from any start: the same tokens in order, from neighbouring and scattered pages."""
    cache = paged().layer(0)
    k, v = random_kv(13)
    first, second = make_batch([9], [9], [table], page_size=4), make_batch([4], [13], [table], page_size=4)
    cache.write(k[:9], v[:9], first.slot_mapping)
    cache.write(k[9:], v[9:], second.slot_mapping)
    keys, values = cache.read(second, 0, start)
    assert torch.equal(keys, k[start:])
    assert torch.equal(values, v[start:])


def test_neighbouring_pages_are_read_as_a_view():
    """Where the pages lie side by side nothing is copied; where they do not, the storage is not aliased."""
    cache = paged().layer(0)
    batch = make_batch([9, 9], [9, 9], [[3, 4, 5], [9, 8, 7]], page_size=4)
    neighbours, scattered = cache.read(batch, 0, 2)[0], cache.read(batch, 1)[0]
    storage = cache.key_pages.untyped_storage().data_ptr()
    assert neighbours.untyped_storage().data_ptr() == storage
    assert scattered.untyped_storage().data_ptr() != storage


def test_contiguous_cache_is_read_as_a_view():
    """One page per sequence: every read is a view."""
    cache = ContiguousKVCache([SPEC], num_sequences=3, max_length=20, dtype=torch.float32).layer(0)
    batch = make_batch([2, 5], [11, 5], [[2], [0]], page_size=20)
    for index in range(2):
        for tensor in cache.read(batch, index):
            assert tensor.untyped_storage().data_ptr() in {
                cache.key_pages.untyped_storage().data_ptr(),
                cache.value_pages.untyped_storage().data_ptr(),
            }


@pytest.mark.parametrize("count", [1, 5, 63, 64, 200])
@pytest.mark.parametrize("order", ["consecutive", "reversed", "gap"])
def test_write_puts_each_token_in_its_slot(count, order):
    """A run of slots, a run backwards and a run with a hole are written alike, by slice or by index."""
    cache = paged(num_pages=64).layer(0)
    cache.key_pages.zero_()
    cache.value_pages.zero_()
    slots = torch.arange(17, 17 + count)
    if order == "reversed":
        slots = slots.flip(0)
    if order == "gap":
        slots[count // 2 :] += 3
    k, v = random_kv(count)
    cache.write(k, v, slots)
    flat = cache.key_pages.flatten(0, 1)
    assert torch.equal(flat[slots], k)
    assert torch.equal(cache.value_pages.flatten(0, 1)[slots], v)
    untouched = torch.ones(256, dtype=torch.bool)
    untouched[slots] = False
    assert (flat[untouched] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [3, 100])
def test_write_converts_to_the_dtype_of_the_cache(dtype, count):
    """Keys in float32 are rounded to the storage dtype, whichever way they are written."""
    cache = paged(num_pages=64, dtype=dtype).layer(0)
    k, v = random_kv(count)
    batch = make_batch([count], [count], [list(range(25))], page_size=4)
    cache.write(k, v, batch.slot_mapping)
    keys, values = cache.read(batch, 0)
    assert keys.dtype == dtype
    assert torch.equal(keys, k.to(dtype))
    assert torch.equal(values, v.to(dtype))


def test_mode_and_gradients_of_the_maker_do_not_matter():
    """A cache made in inference mode is writable outside it, and keys with a history leave none in the cache."""
    with torch.inference_mode():
        cache = paged(num_pages=64).layer(0)
        cache.write(*random_kv(3), torch.arange(3))
    for count in (3, 100):
        k, v = (tensor.requires_grad_() for tensor in random_kv(count))
        cache.write(k * 2, v, torch.arange(count))
        keys, values = cache.read(make_batch([1], [count], [list(range(25))], page_size=4), 0)
        assert torch.equal(keys, k.detach() * 2)
        assert not keys.requires_grad
        assert not values.requires_grad


def test_layers_do_not_share_storage():
    """Each layer has pages of its own, in its own shape."""
    wide = AttentionSpec(num_heads=8, num_kv_heads=8, head_dim=4)
    cache = PagedKVCache([SPEC, wide, SPEC], num_pages=5, page_size=4, dtype=torch.bfloat16)
    assert [tuple(cache.layer(i).key_pages.shape) for i in range(3)] == [(5, 4, 2, 8), (5, 4, 8, 4), (5, 4, 2, 8)]
    storages = {cache.layer(i).key_pages.data_ptr() for i in range(3)}
    storages |= {cache.layer(i).value_pages.data_ptr() for i in range(3)}
    assert len(storages) == 6


def test_layout_is_found_anew_for_each_batch():
    """A new batch with the same lengths but other pages is not mistaken for the last one."""
    cache = paged().layer(0)
    k, v = random_kv(16)
    cache.write(k, v, torch.arange(16))
    first, second = (make_batch([1], [4], [[page]], page_size=4) for page in (0, 3))
    assert torch.equal(cache.read(first, 0)[0], k[:4])
    assert torch.equal(cache.read(second, 0)[0], k[12:])
    assert torch.equal(cache.read(first, 0)[0], k[:4])


def test_sizes():
    """nbytes and kv_bytes count keys and values of every layer."""
    specs = [SPEC, AttentionSpec(num_heads=4, num_kv_heads=1, head_dim=16)]
    assert kv_bytes(specs, 10, torch.bfloat16) == 2 * 10 * 2 * (2 * 8 + 16)
    cache = PagedKVCache(specs, num_pages=5, page_size=4, dtype=torch.float32)
    assert cache.nbytes == kv_bytes(specs, 20, torch.float32)
    assert (cache.num_pages, cache.page_size) == (5, 4)
    contiguous = ContiguousKVCache(specs, num_sequences=3, max_length=7, dtype=torch.float16)
    assert contiguous.nbytes == kv_bytes(specs, 21, torch.float16)
    assert (contiguous.num_pages, contiguous.page_size) == (3, 7)


@pytest.mark.parametrize(
    "cache",
    [paged(), ContiguousKVCache([SPEC], num_sequences=2, max_length=8, dtype=torch.float32)],
    ids=["paged", "c"],
)
def test_caches_satisfy_the_contracts(cache):
    """Both caches are KVCaches of LayerKVCaches."""
    assert isinstance(cache, KVCache)
    assert isinstance(cache.layer(0), LayerKVCache)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident set from /proc")
def test_untouched_contiguous_cache_costs_no_memory():
    """Only what is written becomes resident: half a gigabyte of cache, a hundred tokens, some megabytes at most."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    specs = [AttentionSpec(num_heads=8, num_kv_heads=8, head_dim=128)] * 4
    before = resident()
    cache = ContiguousKVCache(specs, num_sequences=1, max_length=1 << 15, dtype=torch.bfloat16)
    batch = make_batch([100], [100], page_size=1 << 15)
    k = torch.ones(100, 8, 128)
    for index in range(4):
        cache.layer(index).write(k, k, batch.slot_mapping)
    assert cache.nbytes == 1 << 29
    assert resident() - before < 1 << 26


class TestRefusals:
    def test_sizes_below_one(self):
        """A cache of nothing is a mistake."""
        with pytest.raises(ValueError, match=r"num_pages \(0\) and page_size \(16\) must be at least 1"):
            PagedKVCache([SPEC], num_pages=0, dtype=torch.float32)
        with pytest.raises(ValueError, match=r"num_sequences \(1\) and max_length \(0\) must be at least 1"):
            ContiguousKVCache([SPEC], num_sequences=1, max_length=0, dtype=torch.float32)

    def test_no_memory(self):
        """A cache beyond all memory says how much it would take."""
        with pytest.raises(DoesNotFitError, match=r"a KV cache of 1,125,899,906,842,624 bytes does not fit on cpu"):
            PagedKVCache([SPEC], num_pages=1 << 33, page_size=1 << 10, dtype=torch.float32)

    def test_other_allocation_errors_are_not_renamed(self):
        """What is not for want of memory stays what it is."""
        with pytest.raises(RuntimeError, match="device"):
            PagedKVCache([SPEC], num_pages=1, dtype=torch.float32, device="nonsense")

    def test_wrong_shapes(self):
        """Keys, values and slots must agree with each other and with the cache."""
        cache = paged().layer(0)
        k, v = random_kv(3)
        expected = r"keys and values must have shape \(3, 2, 8\), got "
        with pytest.raises(ValueError, match=expected + r"\(2, 2, 8\) and \(3, 2, 8\)"):
            cache.write(k[:2], v, torch.arange(3))
        with pytest.raises(ValueError, match=expected + r"\(3, 2, 8\) and \(3, 1, 8\)"):
            cache.write(k, v[:, :1], torch.arange(3))

    @pytest.mark.parametrize("count", [3, 100])
    @pytest.mark.parametrize("first", [-1, 16 * 4 - 2, 1 << 40])
    def test_slots_outside_the_cache(self, first, count):
        """On a CPU a slot outside raises, whichever way the tokens would be written."""
        k, v = random_kv(count)
        with pytest.raises(IndexError, match=r"index out of range|out of bounds"):
            paged().layer(0).write(k, v, torch.arange(first, first + count))

    @pytest.mark.parametrize("start", [-1, 6])
    def test_start_outside_the_sequence(self, start):
        """A read may start anywhere up to the end of the sequence."""
        with pytest.raises(ValueError, match=f"start must be between 0 and the sequence's length 5, got {start}"):
            paged().layer(0).read(make_batch([5], [5], [[0, 1]], page_size=4), 0, start)

    def test_page_outside_the_cache(self):
        """A block table may only name pages of this cache."""
        batch = make_batch([1, 1], [5, 5], [[0, 1], [3, 16]], page_size=4)
        with pytest.raises(ValueError, match="sequence 1: page 16 is outside the cache's 16 pages"):
            paged().layer(0).read(batch, 0)

    def test_unused_entry_inside_a_sequence(self):
        """-1 marks unused entries of a block table; inside a sequence it is an error."""
        good = make_batch([1], [9], [[0, 1, 2]], page_size=4)
        good.block_tables[0, 1] = -1
        with pytest.raises(ValueError, match="sequence 0: page -1 is outside"):
            paged().layer(0).read(good, 0)

    def test_short_block_table(self):
        """A layout made for larger pages than the cache's does not silently lose its tail."""
        batch = make_batch([1], [9], [[0]], page_size=16)
        with pytest.raises(ValueError, match="sequence 0: 1 pages of 4 do not hold 9 tokens"):
            paged().layer(0).read(batch, 0)


@st.composite
def layouts(draw):
    """Steps of several sequences that grow in chunks, and a random home for each of their pages."""
    page_size = draw(st.integers(1, 7))
    lengths = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
    counts = [math.ceil(sum(chunks) / page_size) for chunks in lengths]
    spare = draw(st.integers(0, 3))
    pages = draw(st.permutations(range(sum(counts) + spare)))
    tables, used = [], 0
    for count in counts:
        tables.append(list(pages[used : used + count]))
        used += count
    return page_size, lengths, tables, len(pages)


@settings(max_examples=60, deadline=None)
@given(
    layout=layouts(),
    window=st.sampled_from([None, 1, 6]),
    backend=st.sampled_from([SDPAAttention(), ReferenceAttention()]),
)
def test_paged_equals_contiguous_and_whole(layout, window, backend):
    """Chunk by chunk over random pages = chunk by chunk over a contiguous cache = the whole sequence at once."""
    page_size, chunks, tables, num_pages = layout
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, window=window)
    totals = [sum(steps) for steps in chunks]
    generator = torch.Generator().manual_seed(1)
    q, k, v = ([torch.randn(total, heads, 8, generator=generator) for total in totals] for heads in (4, 2, 2))
    caches = {
        "paged": PagedKVCache([spec], num_pages=num_pages, page_size=page_size, dtype=torch.float32),
        "contiguous": ContiguousKVCache([spec], num_sequences=len(totals), max_length=max(totals), dtype=torch.float32),
    }
    attention = Attention(spec, layer=0, backend=backend)
    outputs = {name: [[] for _ in totals] for name in caches}
    done = [0] * len(totals)
    for step in range(max(map(len, chunks))):
        active = [index for index, steps in enumerate(chunks) if step < len(steps)]
        query_lens = [chunks[index][step] for index in active]
        seq_lens = [done[index] + length for index, length in zip(active, query_lens, strict=True)]
        parts = [
            torch.cat([tensors[index][done[index] : end] for index, end in zip(active, seq_lens, strict=True)])
            for tensors in (q, k, v)
        ]
        for name, cache in caches.items():
            rows = [tables[index] if name == "paged" else [index] for index in active]
            batch = make_batch(query_lens, seq_lens, rows, page_size=cache.page_size)
            out = attention(*parts, cache, batch)
            for index, piece in zip(active, out.split(query_lens), strict=True):
                outputs[name][index].append(piece)
        for index, end in zip(active, seq_lens, strict=True):
            done[index] = end
    for index, total in enumerate(totals):
        whole = backend.attend(q[index], k[index], v[index], spec, query_lens=(total,), key_lens=(total,))
        for name in caches:
            torch.testing.assert_close(torch.cat(outputs[name][index]), whole, atol=2e-6, rtol=2e-6)
