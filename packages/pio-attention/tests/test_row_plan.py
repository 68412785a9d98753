"""Decoding over pages without copying the cache: every layout equals the reference, and takes the calls it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.attention import (
    ContiguousKVCache,
    PagedKVCache,
    ReferenceAttention,
    SDPAAttention,
    _row_attention,
    make_batch,
)
from inference_pio.attention._row_plan import Limits
from inference_pio.interfaces import AttentionSpec, LatentSpec

SMALL = Limits(view=1, view_half=1, block=1)  # everything neighbouring in place, one page per copy
COPIES = Limits(view=1 << 40, view_half=1 << 40, block=1 << 40)  # everything copied, all together
MIDDLE = Limits(view=16, view_half=16, block=1 << 13)
DEFAULT = Limits()


@pytest.fixture(params=[SMALL, COPIES, MIDDLE, DEFAULT], ids=["views", "copies", "middle", "default"])
def limits(request, monkeypatch):
    monkeypatch.setattr(_row_attention, "_LIMITS", request.param)


@pytest.fixture
def count_calls(monkeypatch):
    """Make the sizes of the pieces of the last plan known: (sets, rows, in place)."""
    plans = []
    real = _row_attention.plan_rows

    def plan_rows(*arguments, **options):
        plans.append(real(*arguments, **options))
        return plans[-1]

    monkeypatch.setattr(_row_attention, "plan_rows", plan_rows)
    return lambda: [(piece.sets, len(piece.rows), piece.slots is not None) for piece in plans[-1].pieces]


def layouts(page_size):
    """(query_lens, seq_lens, block tables) by name; pages below 200."""
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    shared = list(range(100, 100 + 64 // page_size))

    def pages(length, start):
        return list(range(start, start + -(-length // page_size)))

    def scattered(length, start):
        return shuffled[start : start + -(-length // page_size)]

    half = 64 // page_size // 2
    return {
        "one run": ([1], [70], [pages(70, 3)]),
        "runs and single pages": (
            [1, 1],
            [150, 33],
            [[*pages(64, 10), *scattered(24, 0), *pages(64, 60)], scattered(33, 50)],
        ),
        "backwards": ([1, 1, 1], [64, 65, 63], [pages(65, 20 * i)[::-1] for i in (1, 2, 3)]),
        "shared prefix": (
            [1] * 4,
            [64, 65, 90, 71],
            [shared, [*shared, 5], [*shared, *scattered(26, 0)], [*shared, *pages(7, 20)]],
        ),
        "prefixes that branch": (
            [1] * 5,
            [80, 81, 80, 40, 81],
            [
                [*shared, *pages(16, 0)],
                [*shared, *pages(17, 30)],
                [*shared[:half], *pages(80 - 32, 50)],
                scattered(40, 40),
                [*shared[:half], *pages(80 - 32, 50), 99],
            ],
        ),
        "the same pages": ([1, 1], [64, 64], [shared, shared]),
        "drafts": (
            [3, 1, 3, 2, 4],
            [40, 50, 43, 70, 4],
            [pages(40, 0), pages(50, 20), scattered(43, 0), [*shared, *pages(6, 60)], pages(4, 90)],
        ),
        "drafts after a shared prefix": ([3, 5, 3], [70, 71, 67], [[*shared, *pages(7, 20 * i)] for i in range(3)]),
        "prefill, prefix hit, chunk, decode": (
            [20, 16, 30, 1, 1],
            [20, 80, 94, 90, 67],
            [
                scattered(20, 0),
                [*shared, *scattered(16, 20)],
                [*shared, *pages(30, 40)],
                [*shared, *scattered(26, 60)],
                pages(67, 80 if page_size > 1 else 0),
            ],
        ),
        "first tokens": ([1, 1], [1, 2], [[7], pages(2, 9)]),
        "nothing": ([], [], []),
    }


def fill_shared(cache, batch, spec, page_size, generator):
    """Write every page that a table names once, NaN elsewhere; give each sequence's keys and values back, packed."""
    slots = 200 * page_size
    rows = [
        torch.randn(slots, spec.num_kv_heads, spec.head_dim, generator=generator).to(cache.key_pages.dtype)
        for _ in "kv"
    ]
    used = torch.zeros(slots, dtype=torch.bool)
    places = [
        [int(table[p // page_size]) * page_size + p % page_size for p in range(length)]
        for table, length in zip(batch.block_tables, batch.seq_lens, strict=True)
    ]
    for place in places:
        used[place] = True
    for row in rows:
        row[~used] = float("nan")
    cache.write(*rows, torch.arange(slots))
    everything = [slot for place in places for slot in place]
    return [row[everything].float() for row in rows]


@pytest.mark.parametrize(("page_size", "num_heads", "num_kv_heads"), [(1, 4, 4), (4, 9, 3), (16, 4, 1)])
def test_every_layout_equals_the_reference(limits, page_size, num_heads, num_kv_heads, reach, assert_close):
    """Runs, shared prefixes, drafts, prefill and decode in one call, for every head layout, reach and choice of pieces;
    what lies in slots that no sequence has written never reaches an output."""
    spec = AttentionSpec(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=8, causal=reach[0], window=reach[1])
    for layout, (query_lens, seq_lens, tables) in layouts(page_size).items():
        generator = torch.Generator().manual_seed(0)
        cache = PagedKVCache([spec], num_pages=200, page_size=page_size, dtype=torch.float32).layer(0)
        batch = make_batch(query_lens, seq_lens, tables, page_size=page_size)
        k, v = fill_shared(cache, batch, spec, page_size, generator)
        q = torch.randn(sum(query_lens), num_heads, 8, generator=generator)
        with torch.inference_mode():
            out = SDPAAttention().attend_cached(q, cache, batch, spec)
        expected = ReferenceAttention().attend(q, k, v, spec, query_lens=tuple(query_lens), key_lens=tuple(seq_lens))
        assert_close(out, expected, 3e-6, layout)


@pytest.mark.parametrize("layout", layouts(4))
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_every_dtype_equals_the_reference(limits, layout, dtype, cache_dtype):
    """The same in other dtypes, and with a cache in another dtype than the queries."""
    spec = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=16)
    query_lens, seq_lens, tables = layouts(4)[layout]
    generator = torch.Generator().manual_seed(0)
    cache = PagedKVCache([spec], num_pages=200, page_size=4, dtype=cache_dtype).layer(0)
    batch = make_batch(query_lens, seq_lens, tables, page_size=4)
    k, v = fill_shared(cache, batch, spec, 4, generator)
    q = torch.randn(sum(query_lens), 6, 16, generator=generator).to(dtype)
    out = SDPAAttention().attend_cached(q, cache, batch, spec)
    expected = ReferenceAttention().attend(
        q.float(), k, v, spec, query_lens=tuple(query_lens), key_lens=tuple(seq_lens)
    )
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 3e-6)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("layout", layouts(4))
def test_latents_equal_the_reference(limits, layout):
    """Keys that are their own values, in every layout."""
    spec = AttentionSpec(num_heads=4, num_kv_heads=1, head_dim=12, value_dim=8)
    query_lens, seq_lens, tables = layouts(4)[layout]
    generator = torch.Generator().manual_seed(0)
    cache = PagedKVCache([LatentSpec(rank=8, rope_dim=4)], num_pages=200, page_size=4, dtype=torch.float32).layer(0)
    batch = make_batch(query_lens, seq_lens, tables, page_size=4)
    rows = torch.randn(800, 1, 12, generator=generator)
    cache.write(rows, rows[..., :8], torch.arange(800))
    q = torch.randn(sum(query_lens), 4, 12, generator=generator)
    out = SDPAAttention().attend_cached(q, cache, batch, spec)
    torch.testing.assert_close(out, ReferenceAttention().attend_cached(q, cache, batch, spec), atol=3e-6, rtol=3e-6)


def test_a_sequence_with_nan_disturbs_no_other(limits):
    """A failed sequence fails alone, although its pages are copied, padded and attended to beside others."""
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8)
    cache = PagedKVCache([spec], num_pages=40, page_size=4, dtype=torch.float32).layer(0)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(160, 2, 8, generator=generator)
    tables = [[0, 9, 3, 30, 31], [5, 2], [11, 8, 4, 1]]
    rows[[20, 22, 8, 9]] = float("nan")  # tokens of the second sequence
    cache.write(rows, rows, torch.arange(160))
    q = torch.randn(3, 4, 8, generator=generator)
    batch = make_batch([1, 1, 1], [18, 7, 13], tables, page_size=4)
    out = SDPAAttention().attend_cached(q, cache, batch, spec)
    expected = ReferenceAttention().attend_cached(q, cache, batch, spec)
    assert out[1].isnan().all()
    torch.testing.assert_close(out[[0, 2]], expected[[0, 2]], atol=3e-6, rtol=3e-6)


class TestPieces:
    """Which calls a layout takes, with the sizes that are shipped."""

    SPEC = AttentionSpec(num_heads=9, num_kv_heads=3, head_dim=64)

    def run(self, query_lens, seq_lens, tables, num_pages=2048, dtype=torch.float32):
        cache = PagedKVCache([self.SPEC], num_pages=num_pages, dtype=dtype).layer(0)
        cache.key_pages.zero_()
        cache.value_pages.zero_()
        q = torch.zeros(sum(query_lens), 9, 64)
        batch = make_batch(query_lens, seq_lens, tables, page_size=16)
        SDPAAttention().attend_cached(q, cache, batch, self.SPEC)
        return cache, q, batch

    def test_neighbouring_pages_are_read_in_place(self, count_calls):
        """One call per sequence, nothing copied."""
        self.run([1] * 8, [400] * 8, [list(range(25 * i, 25 * i + 25)) for i in range(8)])
        assert count_calls() == [(1, 1, True)] * 8

    def test_a_shared_prefix_is_read_once(self, count_calls):
        """One call for the prefix with the rows of all, and one for the short ends of all."""
        shared = list(range(64))
        self.run([1] * 8, [1034] * 8, [[*shared, 100 + 3 * i] for i in range(8)])
        assert count_calls() == [(1, 8, True), (8, 8, False)]

    def test_grown_sequences_take_two_calls(self, count_calls):
        """A prompt in neighbouring pages and single pages after it: the prompt in place, the single pages together."""
        tables = [[*range(20 * i, 20 * i + 20), 1000 - 3 * i, 1100 + 2 * i, 1200 + 5 * i] for i in range(8)]
        self.run([1] * 8, [360] * 8, tables)
        assert count_calls() == [(1, 1, True)] * 8 + [(8, 8, False)]

    def test_copies_are_bounded(self, count_calls):
        """A long sequence whose pages are scattered is copied block by block, whatever its length."""
        self.run([1], [16000], [torch.randperm(2048, generator=torch.Generator().manual_seed(0)).tolist()[:1000]])
        pieces = _row_attention._LIMITS.block // (16 * 2 * 3 * 64 * 4)
        assert len(count_calls()) == -(-1000 // pieces)

    @pytest.mark.parametrize("page_size", [4096, 3000, 1999])
    @pytest.mark.parametrize("length", [40, 127, 400])
    def test_a_large_page_is_not_copied_whole(self, page_size, length, monkeypatch):
        """In a contiguous cache, what is copied of a page is what the sequence has stored, to the next part of it."""
        cache = ContiguousKVCache([self.SPEC], num_sequences=3, max_length=page_size, dtype=torch.float32).layer(0)
        sizes = []
        real = cache.gather_pages

        def gather_pages(pages, size):
            sizes.append(len(pages) * size)
            return real(pages, size)

        monkeypatch.setattr(cache, "gather_pages", gather_pages)
        batch = make_batch([1, 1], [length, 30], [[2], [1]], page_size=page_size)
        generator = torch.Generator().manual_seed(0)
        for index, count in ((2, length), (1, 30)):
            k = torch.randn(count, 3, 64, generator=generator)
            cache.write(k, k, torch.arange(count) + index * page_size)
        q = torch.randn(2, 9, 64, generator=generator)
        out = SDPAAttention().attend_cached(q, cache, batch, self.SPEC)
        expected = ReferenceAttention().attend_cached(q, cache, batch, self.SPEC)
        torch.testing.assert_close(out, expected, atol=3e-6, rtol=3e-6)
        assert sum(sizes) <= 2 * (length + 64)

    def test_another_dtype_is_copied_in_blocks(self, count_calls):
        """Keys that must be converted are never read in place."""
        self.run([1], [800], [list(range(50))], dtype=torch.bfloat16)
        assert all(not in_place for _, _, in_place in count_calls())

    def test_one_plan_serves_all_layers(self, monkeypatch):
        """Planning happens once per step, however many layers ask, and anew for the next step."""
        cache, q, batch = self.run([1] * 2, [40, 50], [[3, 9, 5], [8, 7, 6, 1]])
        made = []
        monkeypatch.setattr(_row_attention, "plan_rows", lambda batch, *_, **__: made.append(batch))
        SDPAAttention().attend_cached(q, cache, batch, self.SPEC)
        assert not made
        _row_attention.find_plan(q, cache, make_batch([1], [3], [[0]], page_size=16), self.SPEC)
        assert len(made) == 1


@st.composite
def forests(draw):
    """Sequences that grow from each other's prefixes, over pages in random order."""
    page_size = draw(st.integers(1, 5))
    pages = iter(draw(st.permutations(range(120))))
    tables, lens = [], []
    for index in range(draw(st.integers(1, 6))):
        kept = []
        if index and draw(st.booleans()):
            parent = draw(st.integers(0, index - 1))
            kept = tables[parent][: draw(st.integers(0, lens[parent] // page_size))]
        length = len(kept) * page_size + draw(st.integers(1, 20))
        count = -(-length // page_size) - len(kept)
        tables.append(kept + [next(pages) for _ in range(count)])
        lens.append(length)
    queries = [draw(st.integers(1, min(4, length))) for length in lens]
    return page_size, queries, lens, tables


@settings(max_examples=80, deadline=None)
@given(
    forest=forests(),
    window=st.sampled_from([None, 1, 7]),
    view=st.sampled_from([1, 4, 12, 1 << 40]),
    block=st.sampled_from([1, 700, 1 << 40]),
)
def test_random_forests_equal_the_reference(forest, window, view, block):
    """Any forest of prefixes, any lengths and any sizes of pieces."""
    page_size, queries, lens, tables = forest
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=4, window=window)
    cache = PagedKVCache([spec], num_pages=120, page_size=page_size, dtype=torch.float32).layer(0)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(120 * page_size, 2, 4, generator=generator) for _ in "kv"]
    cache.write(*rows, torch.arange(120 * page_size))
    batch = make_batch(queries, lens, tables, page_size=page_size)
    q = torch.randn(sum(queries), 4, 4, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_row_attention, "_LIMITS", Limits(view=view, block=block))
        out = SDPAAttention().attend_cached(q, cache, batch, spec)
    torch.testing.assert_close(out, ReferenceAttention().attend_cached(q, cache, batch, spec), atol=3e-6, rtol=3e-6)
