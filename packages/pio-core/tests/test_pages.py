"""Page bookkeeping: nothing owned twice, nothing leaked, runs kept whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_pio.core._pages import PagePool


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_no_page_is_owned_twice_and_none_is_lost(operations):
    """Over any interleaving of allocate and free, owners are disjoint and free plus owned is everything."""
    pool = PagePool(num_pages=16, page_size=4)
    owned: list[list[int]] = []
    for allocate, amount in operations:
        if allocate:
            before = pool.num_free
            pages = pool.allocate(amount)
            if pages is None:
                assert pool.num_free == before < pool.pages_for(amount)
            else:
                assert len(pages) == pool.pages_for(amount)
                owned.append(pages)
        elif owned:
            pool.free(owned.pop(amount % len(owned)))
        flat = [page for pages in owned for page in pages]
        assert len(flat) == len(set(flat))
        assert set(flat) <= set(range(16))
        assert pool.num_free == 16 - len(flat)
    for pages in owned:
        pool.free(pages)
    assert pool.allocate(64) == list(range(16))


def test_a_free_run_is_handed_out_in_order():
    """A sequence's pages lie side by side wherever such a run is free."""
    pool = PagePool(num_pages=10, page_size=1)
    first, second, third = pool.allocate(3), pool.allocate(2), pool.allocate(3)
    assert (first, second, third) == ([0, 1, 2], [3, 4], [5, 6, 7])
    pool.free(second)
    assert pool.allocate(2) == [3, 4]


def test_scattered_pages_serve_when_no_run_is_long_enough():
    """Free pages are never refused only because they are scattered."""
    pool = PagePool(num_pages=6, page_size=1)
    pages = [pool.allocate(1) for _ in range(6)]
    for index in (0, 2, 3, 5):
        pool.free(pages[index])
    assert sorted(pool.allocate(4)) == [0, 2, 3, 5]
    assert pool.allocate(1) is None


@pytest.mark.parametrize("pages", [[0], [7], [-1], [1, 1]])
def test_wrong_frees_are_refused(pages):
    """Freeing a free page, a page twice or a page of no pool raises and changes nothing."""
    pool = PagePool(num_pages=4, page_size=1)
    pool.allocate(4)
    pool.free([0])
    with pytest.raises(ValueError, match="freed twice or is not one of the 4 pages"):
        pool.free(pages)
    assert pool.num_free == 1


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_empty_pools_are_refused(sizes):
    """A pool without pages or without tokens per page is a caller's mistake."""
    with pytest.raises(ValueError, match="at least 1"):
        PagePool(*sizes)
