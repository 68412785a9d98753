"""Which prefixes are found, by whom, and for how long."""

from __future__ import annotations

import pytest

from inference_pio.cache import PrefixMatch

ONES, TWOS = [1] * 9, [2] * 9


def test_whole_pages_before_the_last_token_are_found(make, compute):
    """A hit is a multiple of the page size, and leaves at least one token to compute."""
    manager = make(full=8)
    compute(manager, manager.open(list(range(10))))
    for length, hit in ((3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (10, 8), (30, 8)):
        assert manager.lookup(manager.open(list(range(length)))) == PrefixMatch(hit, hit)


def test_hit_shares_the_pages_themselves(make, compute):
    """An admitted sequence begins with the pages of the one before, while that runs and when it has gone."""
    manager = make(full=8)
    first = compute(manager, manager.open(list(range(10))))
    pages = list(first.tables[0])
    second = manager.open([*range(8), 50, 51])
    assert manager.admit(second, 10, expected=10)
    assert second.num_cached == second.num_computed == 8
    assert second.tables[0][:2] == pages[:2]
    assert second.tables[0][2] != pages[2]
    manager.release(first)
    manager.release(second)
    third = manager.open(list(range(10)))
    assert manager.admit(third, 10, expected=10)
    assert third.tables[0][:2] == pages[:2]
    manager.check()


def test_a_changed_token_ends_the_prefix(make, compute):
    """A page is found only if everything before it is equal, too."""
    manager = make(full=8)
    compute(manager, manager.open(list(range(13))))
    for position, hit in ((0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (12, 12)):
        tokens = list(range(13))
        tokens[position] = 99
        assert manager.lookup(manager.open(tokens)).cached == hit


@pytest.mark.parametrize("salt", ["tenant", "\ud800", "é"])
def test_salts_do_not_share(make, compute, salt):
    """Only sequences of the same salt find each other's pages."""
    manager = make(full=12)
    compute(manager, manager.open(list(ONES), salt=salt))
    assert manager.lookup(manager.open(list(ONES))).cached == 0
    assert manager.lookup(manager.open(list(ONES), salt=salt + "2")).cached == 0
    assert manager.lookup(manager.open(list(ONES), salt=salt)).cached == 8


def test_digests_differ_between_managers(make, compute):
    """Contents are keyed at random, so collisions cannot be prepared."""
    digests = [compute(manager, manager.open(list(ONES))).digests for manager in (make(full=4), make(full=4))]
    assert digests[0][0] != digests[1][0]
    assert len(digests[0]) == 2


def test_reuse_false_takes_nothing_but_publishes(make, compute):
    """A sequence that wants all its logits computes everything, for others as well."""
    manager = make(full=12)
    first = compute(manager, manager.open(list(ONES), reuse=False))
    again = manager.open(list(ONES), reuse=False)
    assert manager.lookup(again) == PrefixMatch(0, 0)
    compute(manager, again)
    assert again.num_cached == 0
    assert not set(again.tables[0]) & set(first.tables[0])
    assert manager.lookup(manager.open(list(ONES))).cached == 8
    assert manager.stats.queries == 0


def test_without_caching_nothing_is_published(make, compute):
    """Released pages are clean at once."""
    manager = make(full=8, prefix_caching=False)
    manager.release(compute(manager, manager.open(list(ONES))))
    assert manager.lookup(manager.open(list(ONES))) == PrefixMatch(0, 0)
    assert manager.num_free() == 8


def test_equal_pages_stay_where_they_are(make, compute):
    """Two that compute the same at once keep their own pages; the first is found."""
    manager = make(full=8)
    first, second = manager.open(list(ONES)), manager.open(list(ONES))
    assert manager.admit(first, 9, expected=9)
    assert manager.admit(second, 9, expected=9)
    compute(manager, first)
    own = list(second.tables[0])
    compute(manager, second)
    assert second.tables[0] == own
    third = manager.open(list(ONES))
    manager.release(second)
    assert manager.admit(third, 9, expected=9)
    assert third.tables[0][:2] == first.tables[0][:2]
    manager.check()


def test_least_recently_used_goes_first_and_deepest_before_shallow(make, compute):
    """Pages of the prefix that was released first are evicted first, from its end."""
    manager = make(full=6)
    manager.release(compute(manager, manager.open([*ONES])))
    manager.release(compute(manager, manager.open([*TWOS])))
    hits = []
    for pages in (2, 3, 4, 5, 6):  # two clean pages, then what is cached
        other = manager.open([3] * (4 * pages), reuse=False)
        assert manager.admit(other, 4 * pages, expected=0)
        manager.release(other)
        hits.append(tuple(manager.lookup(manager.open([*tokens])).cached for tokens in (ONES, TWOS)))
    assert hits == [(8, 8), (4, 8), (0, 8), (0, 4), (0, 0)]
    assert manager.stats.evictions == 4


def test_use_makes_a_prefix_recent(make, compute):
    """A prefix that was taken again outlives one that was not."""
    manager = make(full=6)
    manager.release(compute(manager, manager.open([*ONES])))
    manager.release(compute(manager, manager.open([*TWOS])))
    manager.release(compute(manager, manager.open([*ONES])))
    other = manager.open([3] * 16)
    assert manager.admit(other, 16, expected=0)
    assert [manager.lookup(manager.open([*tokens])).cached for tokens in (ONES, TWOS)] == [8, 0]


def test_promises_are_what_runs_will_have_computed(make, compute):
    """The prefix of a running sequence is promised from its admission until it is computed, page by page."""
    manager = make(full=16)
    first, second = manager.open(list(range(13))), manager.open([*range(12), 99])
    assert manager.lookup(second) == PrefixMatch(0, 0)
    assert manager.admit(first, 13, expected=13)
    assert manager.lookup(second) == PrefixMatch(0, 12)
    compute(manager, first, 6)
    assert manager.lookup(second) == PrefixMatch(4, 12)
    compute(manager, first, 13)
    assert manager.lookup(second) == PrefixMatch(12, 12)


def test_only_what_was_admitted_is_promised(make):
    """Tokens beyond the admitted ones are nobody's promise."""
    manager = make(full=16)
    assert manager.admit(manager.open(list(range(20))), 9, expected=20)
    assert manager.lookup(manager.open(list(range(20)))) == PrefixMatch(0, 8)


@pytest.mark.parametrize("how", ["release", "swap_out"])
def test_promises_vanish_with_their_sequence(make, compute, how):
    """What a sequence that stopped has not computed is promised no longer, unless another promised it, too."""
    manager = make(full=16, host=16)
    first, second = manager.open(list(range(13))), manager.open([*range(8), 7])
    assert manager.admit(first, 13, expected=13)
    compute(manager, first, 4)
    assert manager.admit(second, 9, expected=9)
    third = manager.open(list(range(13)))
    assert manager.lookup(third) == PrefixMatch(4, 12)
    getattr(manager, how)(first)
    assert manager.lookup(third) == PrefixMatch(4, 8)
    getattr(manager, how)(second)
    assert manager.lookup(third) == PrefixMatch(4, 4)
    manager.check()


def test_lookup_changes_nothing(make, compute):
    """Looking up counts as no query, and leaves the order of eviction as it is."""
    manager = make(full=6)
    manager.release(compute(manager, manager.open([*ONES])))
    manager.release(compute(manager, manager.open([*TWOS])))
    before = manager.stats.queries
    assert manager.lookup(manager.open([*ONES])).cached == 8
    assert manager.missing(manager.open([*ONES]), 9) == 0
    assert manager.stats.queries == before
    other = manager.open([3] * 16)
    assert manager.admit(other, 16, expected=0)
    assert [manager.lookup(manager.open([*tokens])).cached for tokens in (ONES, TWOS)] == [0, 8]


def test_stats_count_tokens(make, compute):
    """Hits and queries are tokens of admitted sequences."""
    manager = make(full=8)
    compute(manager, manager.open([*ONES]))
    compute(manager, manager.open([*ONES, 4]))
    assert (manager.stats.queries, manager.stats.hits, manager.stats.evictions, manager.stats.copies) == (19, 8, 0, 0)


def test_clear_forgets_what_nobody_owns(make, compute):
    """Prefixes of running sequences stay, all others go."""
    manager = make(full=8)
    compute(manager, manager.open([*ONES]))
    manager.release(compute(manager, manager.open([*TWOS])))
    manager.clear()
    manager.check()
    assert [manager.lookup(manager.open([*tokens])).cached for tokens in (ONES, TWOS)] == [8, 0]


def test_readmission_finds_its_own_past(make, compute):
    """A sequence preempted by recompute begins again where its last whole page ended."""
    manager = make(full=8)
    seq = compute(manager, manager.open(list(range(11))))
    manager.release(seq)
    assert (seq.admitted, seq.num_computed, seq.tables) == (False, 0, ([],))
    assert manager.admit(seq, 11, expected=11)
    assert seq.num_computed == 8
    manager.check()


def test_window_hit_needs_the_pages_that_the_next_query_sees(make, compute):
    """After pages were evicted from a window, the longest prefix that still has its window is found."""
    manager = make(full=16, window=(5, 6))
    seq = compute(manager, manager.open(list(range(17))))  # pages 0..3 are whole; the query at 17 sees 13..17
    assert seq.tables[1] == [-1, -1, -1, *seq.tables[1][3:]]
    lengths = (17, 13, 12, 9, 5)
    assert [manager.lookup(manager.open(list(range(length)))).cached for length in lengths] == [16, 12, 8, 8, 4]
    # One clean page, and what the window had left behind first: pages 0 and 1. After 8 tokens page 1 would be needed.
    manager.release(compute(manager, manager.open([99] * 9, reuse=False)))
    assert manager.stats.evictions == 2
    assert [manager.lookup(manager.open(list(range(length)))).cached for length in lengths] == [16, 12, 0, 0, 0]
    probe = manager.open(list(range(17)))
    assert manager.admit(probe, 17, expected=17)
    assert probe.tables[0][:4] == seq.tables[0][:4]
    assert probe.tables[1] == [-1, -1, -1, seq.tables[1][3]]
    manager.check()
