"""Admission, growth, forks, give-backs and swaps, one at a time."""

from __future__ import annotations

import sys

import pytest

from inference_pio.cache import CacheManager, PageMove
from inference_pio.interfaces import CacheGroup


def test_admission_takes_pages_for_what_is_computed(make):
    """As many pages as the tokens need, side by side; the rest of the run is set aside, yet free."""
    manager = make(full=10)
    seq = manager.open(list(range(9)))
    assert manager.admit(seq, 9, expected=20)
    assert seq.tables == ([0, 1, 2],)
    assert manager.num_free() == 7
    assert manager.usage == 0.3
    assert manager.missing(manager.open([1] * 40), 40) == 3


def test_admission_that_fails_changes_nothing(make, compute):
    """Neither pages nor cached prefixes are touched, and the message can say how many pages lack."""
    manager = make(full=4)
    manager.release(compute(manager, manager.open([1] * 9)))
    seq = manager.open([2] * 20)
    assert manager.missing(seq, 20) == 1
    assert not manager.admit(seq, 20, expected=20)
    assert not seq.admitted
    assert manager.lookup(manager.open([1] * 9)).cached == 8
    manager.check()


def test_a_hit_counts_once(make, compute):
    """Cached pages that the sequence takes over are not free for its own new tokens as well."""
    manager = make(full=4)
    manager.release(compute(manager, manager.open([1] * 9)))
    assert manager.missing(manager.open([1] * 16), 16) == 0
    assert manager.missing(manager.open([1] * 17), 17) == 1
    running = compute(manager, manager.open([1] * 9))
    assert manager.missing(manager.open([1] * 12), 12) == 0
    assert manager.missing(manager.open([1] * 17), 17) == 2
    manager.release(running)


def test_neighbours_stay_together_while_sequences_grow(make):
    """Sequences that grow in turns each stay in one run, if they were expected to."""
    manager = make(full=32)
    seqs = [manager.open([number] * 40) for number in range(4)]
    for seq in seqs:
        assert manager.admit(seq, 4, expected=32)
    for end in range(5, 33):
        for seq in seqs:
            assert manager.grow(seq, end)
            manager.commit(seq, end)
    for seq in seqs:
        (table,) = seq.tables
        assert table == list(range(table[0], table[0] + 8))
    manager.check()


def test_what_is_set_aside_is_stolen_from_its_end(make):
    """A pool that runs short takes the far half of what was set aside, and the owner goes on beside its pages."""
    manager = make(full=16)
    first, second = manager.open([1] * 64), manager.open([2] * 64)
    assert manager.admit(first, 4, expected=64)
    assert manager.num_free() == 15
    assert manager.admit(second, 20, expected=20)
    assert second.tables == ([8, 9, 10, 11, 12],)
    assert manager.grow(first, 32)
    assert first.tables == ([*range(8)],)
    manager.release(second)
    third = manager.open([3] * 64)
    assert manager.admit(third, 32, expected=32)
    assert manager.num_free() == 0
    assert not manager.grow(first, 33)
    manager.check()


def test_cached_prefixes_outlive_what_is_set_aside_beyond_measure(make, compute):
    """What is set aside goes before cached prefixes as long as it is more than an eighth of the pool, then after."""
    manager = make(full=20)
    manager.release(compute(manager, manager.open([1] * 9)))
    first = manager.open([2] * 80)
    assert manager.admit(first, 4, expected=72)  # 1 page and 17 aside: all that is clean
    evicted = []
    for pages in (7, 4, 4, 2, 2):
        assert manager.admit(manager.open([3] * 80, reuse=False), 4 * pages, expected=0)
        manager.check()
        evicted.append(manager.stats.evictions)
    assert evicted == [0, 0, 0, 2, 2]
    assert manager.num_free() == 0


def test_evicted_pages_are_neighbours(make, compute):
    """In a pool full of cached prefixes a new sequence still lies in one piece, where old pages lay together."""
    manager = make(full=128)
    old = [manager.open([number] * 40) for number in range(12)]
    for end in range(8, 41, 4):  # in turns
        for seq in old:
            compute(manager, seq, end, expected=40)
    for seq in old:
        manager.release(seq)
    assert len(manager._pools[0].cached) == 120
    new = manager.open([99] * 41)
    assert manager.admit(new, 8, expected=40)
    for end in range(8, 41):
        compute(manager, new, end)
    assert new.tables[0] == list(range(new.tables[0][0], new.tables[0][0] + 10))
    assert manager.stats.evictions <= 16


def test_growth_in_one_group_alone_does_not_happen(make):
    """If any group is short, no group gives a page."""
    manager = make(full=8, window=(20, 3))
    seq = manager.open([1] * 40)
    assert manager.admit(seq, 4, expected=40)
    assert not manager.grow(seq, 13)
    assert [len(table) for table in seq.tables] == [1, 0]
    assert manager.grow(seq, 12)
    assert [len(table) for table in seq.tables] == [3, 3]
    manager.check()


def test_windows_need_no_page_at_admission(make, compute):
    """Long prompts pass through a small window chunk by chunk, so only what they share is counted."""
    manager = make(window=(5, 3))
    seq = manager.open(list(range(40)))
    assert manager.missing(seq, 40) == 0
    assert manager.admit(seq, 40, expected=40)
    assert seq.tables == ([],)
    for end in range(4, 41, 4):
        compute(manager, seq, end)
    assert manager.num_free() == 2


def test_windows_give_pages_back(make, compute):
    """A page goes as soon as the next query cannot see it, and no sooner."""
    manager = make(window=(6, 4))
    seq = manager.open([1])
    assert manager.admit(seq, 1, expected=100)
    for end in range(1, 60):
        compute(manager, seq, end)
        assert [page < 0 for page in seq.tables[0]].count(True) == max(0, end - 5) // 4
        assert len(seq.tables[0]) == -(-end // 4)
        seq.tokens.append(end)
    assert manager.usage <= 0.75


def test_forks_share_until_one_writes(make, compute):
    """Of two that share a page the first writer copies, and the last owner writes in place."""
    manager = make(full=8)
    seq = compute(manager, manager.open(list(range(6))), expected=6)
    twin = manager.fork(seq, [*range(6), 50])
    assert twin.tables == seq.tables
    assert twin.tables[0] is not seq.tables[0]
    assert twin.num_computed == 6
    assert manager.num_free() == 6
    shared = seq.tables[0][1]
    assert manager.grow(seq, 7)
    assert manager.grow(twin, 7)
    assert twin.tables[0][1] == shared
    assert seq.tables[0][0] == twin.tables[0][0]
    assert manager.take_moves() == [PageMove("copy", 0, (shared,), (seq.tables[0][1],))]
    assert manager.take_moves() == []
    assert manager.stats.copies == 1
    manager.check()


def test_fork_at_the_end_of_a_page_copies_nothing(make, compute):
    """Whole pages are never written again."""
    manager = make(full=8)
    seq = compute(manager, manager.open(list(range(8))))
    twin = manager.fork(seq, [*range(8), 50])
    assert manager.grow(seq, 9)
    assert manager.grow(twin, 9)
    assert manager.take_moves() == []
    assert seq.tables[0][:2] == twin.tables[0][:2]
    assert seq.tables[0][2] != twin.tables[0][2]


def test_fork_leaves_empty_pages_to_their_owner(make):
    """Pages admitted but not computed yet hold nothing worth sharing."""
    manager = make(full=8)
    seq = manager.open(list(range(16)))
    assert manager.admit(seq, 16, expected=16)
    assert manager.grow(seq, 5)
    manager.commit(seq, 5)
    twin = manager.fork(seq, list(range(16)))
    assert [len(seq.tables[0]), len(twin.tables[0])] == [4, 2]
    manager.check()


def test_copy_on_write_needs_a_page(make, compute):
    """With no page for the copy growth fails, and succeeds once the other has gone."""
    manager = make(full=2)
    seq = compute(manager, manager.open(list(range(6))))
    twin = manager.fork(seq, list(range(7)))
    assert not manager.grow(twin, 7)
    manager.release(seq)
    assert manager.grow(twin, 7)
    assert manager.take_moves() == []


def test_truncate_gives_back_what_was_proposed_in_vain(make, compute):
    """Pages beyond the accepted tokens go back beside the others, for the next attempt."""
    manager = make(full=8)
    seq = compute(manager, manager.open(list(range(3))), expected=32)
    for _ in range(3):
        assert manager.grow(seq, 14)
        assert seq.tables == ([0, 1, 2, 3],)
        manager.truncate(seq, 5)
        assert seq.tables == ([0, 1],)
        manager.check()
    assert manager.num_free() == 6
    assert manager.grow(seq, 8)


def test_moves_in_a_chain_read_what_was_written_before(make, compute):
    """A page freed and handed out while copies from it and to it are queued: order alone keeps contents right."""
    manager = make(full=3)
    first = compute(manager, manager.open([1, 2]))
    second = manager.fork(first, [1, 2, 3])
    third = manager.fork(first, [1, 2, 4])
    original = first.tables[0][0]
    assert manager.grow(second, 3)
    assert manager.grow(third, 3)
    copied = second.tables[0][0]
    manager.release(second)  # its page is the target of a queued copy
    fourth = manager.fork(third, [1, 2, 5])
    assert manager.grow(fourth, 3)
    assert fourth.tables[0][0] == copied
    (move,) = manager.take_moves()
    assert move == PageMove("copy", 0, (original, original, third.tables[0][0]), (copied, third.tables[0][0], copied))
    manager.check()


def test_swapping_keeps_everything(make, compute):
    """Pages and states move out and in again; places in host memory are then free for others."""
    manager = make(full=4, state=2, host=3)
    seq = compute(manager, manager.open(list(range(6))))
    pages, state = list(seq.tables[0]), list(seq.tables[1])
    assert manager.swap_out(seq)
    assert (seq.swapped, seq.admitted, seq.num_computed) == (True, False, 6)
    out = manager.take_moves()
    assert [(move.kind, move.group, move.sources) for move in out] == [
        ("out", 0, tuple(pages)),
        ("out", 1, (state[0],)),
    ]
    other = compute(manager, manager.open([9] * 16))
    assert not manager.swap_in(seq)
    manager.release(other)
    assert manager.swap_in(seq)
    back = manager.take_moves()
    assert [(move.kind, move.sources, move.targets) for move in back] == [
        ("in", out[0].targets, tuple(seq.tables[0])), ("in", out[1].targets, tuple(seq.tables[1]))
    ]  # fmt: skip
    assert (seq.swapped, seq.admitted, seq.num_computed) == (False, True, 6)
    compute(manager, seq, 6)
    assert manager.swap_out(seq)
    manager.release(seq)
    manager.check()
    assert manager.num_free() == 4


def test_moves_of_different_kinds_keep_their_order(make, compute):
    """A page leaves for the host before another comes in its place: the other way round its content would be lost."""
    manager = make(full=2, host=4)
    first = compute(manager, manager.open([1] * 6))
    assert manager.swap_out(first)
    manager.take_moves()
    second = compute(manager, manager.open([2] * 6))
    assert manager.swap_out(second)
    assert manager.swap_in(first)
    out, back = manager.take_moves()
    assert (out.kind, back.kind) == ("out", "in")
    assert sorted(out.sources) == sorted(back.targets) == [0, 1]
    manager.check()


def test_swapping_needs_room_on_the_host(make, compute):
    """Where the host is the device, and where its pages are taken, nothing moves."""
    manager = make(full=4)
    assert not manager.swap_out(compute(manager, manager.open([1, 2])))
    manager = make(full=4, host=1)
    seq = compute(manager, manager.open(list(range(6))))
    assert not manager.swap_out(seq)
    assert seq.admitted
    assert manager.take_moves() == []


def test_swapped_pages_are_published_again(make, compute):
    """What was evicted on the device meanwhile can be found again after the sequence came back and went on."""
    manager = make(full=3, host=3)
    seq = compute(manager, manager.open(list(range(9))))
    assert manager.swap_out(seq)
    manager.clear()
    assert manager.lookup(manager.open(list(range(9)))).cached == 0
    assert manager.swap_in(seq)
    seq.tokens.extend([9, 10, 11])
    compute(manager, seq)
    assert manager.lookup(manager.open(list(range(9)))).cached == 8


def test_moves_to_one_place_are_not_joined(make, compute):
    """Two sequences that use one host page in turn make two moves: storage need not keep an order within one."""
    manager = make(full=4, host=1)
    first, second = compute(manager, manager.open([1])), compute(manager, manager.open([2]))
    assert manager.swap_out(first)
    manager.release(first)
    assert manager.swap_out(second)
    assert [move.targets for move in manager.take_moves()] == [(0,), (0,)]


def test_capacity_is_that_of_the_tightest_group(make):
    """Groups that keep all tokens bound a sequence; windows only where they are smaller than what they slide over."""
    assert make(full=8).capacity_tokens == 32
    assert make(full=8, window=(5, 2)).capacity_tokens == 32
    assert make(full=8, window=(6, 2)).capacity_tokens == 8
    assert make(window=(5, 2)).capacity_tokens == sys.maxsize
    assert make(state=1).capacity_tokens == sys.maxsize
    assert make(full=8).can_hold(32)
    assert not make(full=8).can_hold(33)


@pytest.mark.parametrize("window", range(1, 14))
def test_a_window_slides_in_what_capacity_says(make, compute, window):
    """Token by token, a sequence of any length passes through the smallest pool said to hold it; not through less."""
    need = next(pages for pages in range(1, 9) if make(window=(window, pages)).can_hold(10**9))
    manager = make(window=(window, need), prefix_caching=False)
    seq = manager.open([0] * 60)
    assert manager.admit(seq, 1, expected=60)
    for end in range(1, 61):
        assert manager.grow(seq, end)
        manager.commit(seq, end)
    if need > 1:
        manager = make(window=(window, need - 1))
        seq = manager.open([0] * 60)
        assert manager.admit(seq, 1, expected=60)
        ends = [end for end in range(1, 61) if manager.grow(seq, end) and not manager.commit(seq, end)]
        assert ends == [*range(1, manager.capacity_tokens + 1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": ()}, "got 0 groups"),
        ({"page_size": 0}, "page_size 0"),
        ({"checkpoint_interval": 6}, "checkpoint_interval 6"),
        ({"checkpoint_interval": 0}, "checkpoint_interval 0"),
    ],
)
def test_bad_sizes_are_refused(options, words):
    """The message names the value."""
    settings = {"groups": [CacheGroup(kind="full", num_pages=1)], "page_size": 4, **options}
    with pytest.raises(ValueError, match=words):
        CacheManager(settings.pop("groups"), **settings)


def test_calls_out_of_order_are_refused(make, compute):
    """A sequence without pages cannot compute, one with pages cannot be admitted; nothing changes."""
    manager = make(full=4, host=4)
    seq = manager.open([1, 2, 3])
    for call in (
        lambda: manager.grow(seq, 1),
        lambda: manager.commit(seq, 0),
        lambda: manager.fork(seq, [1]),
        lambda: manager.truncate(seq, 1),
        lambda: manager.swap_out(seq),
    ):
        with pytest.raises(ValueError, match="has no pages: admit it first"):
            call()
    with pytest.raises(ValueError, match="not in host memory"):
        manager.swap_in(seq)
    compute(manager, seq)
    with pytest.raises(ValueError, match="admitted already"):
        manager.admit(seq, 3, expected=3)
    with pytest.raises(ValueError, match="must begin with the 3 tokens"):
        manager.fork(seq, [1, 2, 4])
    with pytest.raises(ValueError, match="2 are to stay, 3 were computed"):
        manager.truncate(seq, 2)
    with pytest.raises(ValueError, match="cannot have computed 2 tokens: 3 were computed before"):
        manager.commit(seq, 2)
    with pytest.raises(ValueError, match=r"cannot have computed 9 tokens: .* 3 are known, and the pages hold 4"):
        manager.commit(seq, 9)
    assert manager.swap_out(seq)
    for call in (lambda: manager.grow(seq, 1), lambda: manager.commit(seq, 3)):
        with pytest.raises(ValueError, match="is in host memory"):
            call()
    manager.check()


def test_check_finds_a_lost_page(make, compute):
    """Invariants are verified in earnest: a count that is off by one is found."""
    manager = make(full=4)
    seq = compute(manager, manager.open([1, 2, 3, 4]))
    manager._pools[0].refs[seq.tables[0][0]] += 1
    with pytest.raises(AssertionError, match="reference counts differ from the tables"):
        manager.check()
