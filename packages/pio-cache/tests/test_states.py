"""Recurrent states: one page per sequence, checkpoints, forks."""

from __future__ import annotations

import pytest

from inference_pio.cache import PageMove, PrefixMatch


def test_states_start_from_a_checkpoint(make, compute):
    """A prefix is found where the state was saved, and the sequence starts from a copy of it."""
    manager = make(full=16, state=4, checkpoint_interval=8)
    first = compute(manager, manager.open(list(range(12))), 8)
    (save,) = manager.take_moves()
    assert save == PageMove("copy", 1, (first.tables[1][0],), save.targets)
    compute(manager, first)
    assert manager.take_moves() == []
    second = manager.open(list(range(13)))
    assert manager.lookup(second) == PrefixMatch(8, 8)
    assert manager.admit(second, 13, expected=13)
    assert manager.take_moves() == [PageMove("copy", 1, save.targets, (second.tables[1][0],))]
    assert second.tables[1] != first.tables[1]
    assert manager.stats.copies == 2
    manager.check()


def test_no_checkpoint_no_hit(make, compute):
    """Pages alone are of no use where the state between them was never saved."""
    manager = make(full=16, state=4, checkpoint_interval=8)
    compute(manager, manager.open(list(range(12))))
    assert manager.lookup(manager.open(list(range(12)))).cached == 0


def test_chunks_end_at_checkpoints(make, compute):
    """A chunk stops at the last checkpoint it can reach, and goes all the way if it reaches none."""
    manager = make(full=16, state=4, checkpoint_interval=8)
    seq = manager.open(list(range(30)))
    assert [manager.chunk_end(seq, end) for end in (5, 8, 9, 23, 24, 30)] == [5, 8, 8, 16, 24, 24]
    compute(manager, seq, 24)
    assert [manager.chunk_end(seq, end) for end in (25, 30)] == [25, 30]
    assert make(full=16).chunk_end(seq, 30) == 30
    assert make(state=4, prefix_caching=False).chunk_end(seq, 30) == 30


def test_checkpoints_are_promised_where_they_will_be(make):
    """Only lengths at which a state is saved are promised."""
    manager = make(full=16, state=4, checkpoint_interval=8)
    assert manager.admit(manager.open(list(range(22))), 22, expected=22)
    assert manager.lookup(manager.open(list(range(30)))) == PrefixMatch(0, 16)


def test_running_states_go_before_checkpoints(make, compute):
    """Checkpoints live in what running sequences leave, the least recently used goes first."""
    manager = make(state=3, checkpoint_interval=4)
    first = compute(manager, manager.open([1] * 5), 4)
    second = compute(manager, manager.open([2] * 5), 4)
    assert manager.stats.evictions == 1
    assert [manager.lookup(manager.open([token] * 5)).cached for token in (1, 2)] == [0, 4]
    third = compute(manager, manager.open([3] * 5), 4)
    assert manager.num_free() == 0
    assert [manager.lookup(manager.open([token] * 5)).cached for token in (1, 2, 3)] == [0, 0, 0]
    assert manager.missing(manager.open([1]), 1) == 1
    assert not manager.admit(manager.open([1]), 1, expected=1)
    assert manager.fork(first, [1] * 5) is None
    for seq in (first, second, third):
        manager.release(seq)
    manager.check()


def test_the_last_page_may_be_the_checkpoint_itself(make, compute):
    """Where the only page left is the checkpoint, the sequence takes it over, without a copy."""
    manager = make(state=2, checkpoint_interval=4)
    first = compute(manager, manager.open([1] * 5), 4)
    (save,) = manager.take_moves()
    second = manager.open([1] * 5)
    assert manager.admit(second, 5, expected=5)
    assert second.num_cached == 4
    assert second.tables == ([save.targets[0]],)
    assert manager.take_moves() == []
    assert manager.lookup(manager.open([1] * 5)).cached == 0
    manager.release(first)
    manager.check()


def test_a_used_checkpoint_is_recent(make, compute):
    """The checkpoint that a sequence starts from is not the one given up for its page."""
    manager = make(state=3, checkpoint_interval=4)
    for token in (1, 2):
        manager.release(compute(manager, manager.open([token] * 5), 4))
    compute(manager, manager.open([3]))
    assert manager.stats.evictions == 0
    assert manager.admit(manager.open([1] * 5), 5, expected=5)
    assert [manager.lookup(manager.open([token] * 5)).cached for token in (1, 2)] == [4, 0]
    manager.check()


def test_forks_copy_their_state_at_once(make, compute):
    """States are changed in place, so they cannot be shared."""
    manager = make(full=8, state=2, checkpoint_interval=8)
    seq = compute(manager, manager.open(list(range(6))))
    twin = manager.fork(seq, list(range(7)))
    assert manager.take_moves() == [PageMove("copy", 1, (seq.tables[1][0],), (twin.tables[1][0],))]
    manager.check()


@pytest.mark.parametrize(("interval", "expected"), [(None, 64), (8, 8)])
def test_default_interval(make, interval, expected):
    """Sixteen pages, unless something else is said."""
    assert make(state=2, checkpoint_interval=interval).checkpoint_interval == expected
