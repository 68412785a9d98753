"""Which replica is chosen: a policy without processes, sockets or clocks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.serve._router.balance import Balance
from inference_pio.serve._router.prefixes import BLOCK_BYTES, MAX_BLOCKS, PrefixMemory, prompt_blocks

LONG = "Once upon a time there was a fox. " * 40


def blocks_of(*texts, owner="a", **more):
    messages = [{"role": "user", "content": text} for text in texts]
    return prompt_blocks(json.dumps({"messages": messages, **more}).encode(), owner)


def common(first, second):
    return sum(one == other for one, other in zip(first, second, strict=False))


def test_blocks_follow_the_prompt():
    """As many as whole blocks; a conversation that goes on keeps those it had, and differs from where it differs."""
    first = blocks_of(LONG)
    assert abs(len(first) - len(LONG) // BLOCK_BYTES) <= 1
    longer = blocks_of(LONG, LONG)
    assert common(first, longer) == len(first)
    assert common(first, blocks_of("X" + LONG)) == 0
    middle = LONG[:700] + "X" + LONG[701:]
    assert common(first, blocks_of(middle)) == 2
    assert blocks_of("short") == []


def test_blocks_do_not_come_back():
    """A block after others is not the same block at the beginning: each stands for all before it."""
    blocks = prompt_blocks(json.dumps({"prompt": "x" * 8 * BLOCK_BYTES}).encode(), "a")
    assert len(set(blocks)) == len(blocks) == 8


@pytest.mark.parametrize("more", [{"model": "other"}, {"tools": [{"name": "a"}]}, {"system": "Be brief."}])
def test_blocks_differ_by_what_comes_before(more):
    """A model, tools and a system prompt stand before the messages, whatever their place in the body."""
    assert common(blocks_of(LONG), blocks_of(LONG, **more)) == 0


def test_blocks_differ_by_owner():
    """Owners share no cache, so what one has read is nothing to another."""
    assert common(blocks_of(LONG), blocks_of(LONG, owner="b")) == 0


def test_parameters_do_not_count():
    """Only what becomes a part of the prompt does."""
    assert blocks_of(LONG) == blocks_of(LONG, temperature=0.3, max_tokens=5, stream=True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff", b"[" * 100_000, b'{"messages": ' + b"[" * 9999])
def test_bodies_that_are_none_have_no_blocks(body):
    """A replica says what is wrong with them."""
    assert prompt_blocks(body, "a") == []


def test_blocks_are_bounded():
    """However long the prompt is."""
    assert len(prompt_blocks(json.dumps({"prompt": "x" * 10**6}).encode(), "a")) == MAX_BLOCKS


def test_memory_is_bounded_and_forgets_ends_first():
    """What prompts begin with is kept longest, since without it the rest is lost."""
    memory = PrefixMemory(capacity=4)
    memory.add([1, 2, 3])
    memory.add([7, 8])
    assert len(memory) == 4
    assert memory.matched([1, 2, 3]) == 2
    assert memory.matched([7, 8, 9]) == 2
    memory.add([1, 2])
    memory.add([5])
    assert memory.matched([7, 8]) == 1
    assert memory.matched([1, 2]) == 2
    memory.clear()
    assert memory.matched([1]) == 0


def place(balance, ready, blocks=()):
    chosen = balance.choose(ready, blocks)
    balance.begin(chosen, blocks)
    return chosen


def test_least_outstanding_then_longest_ago():
    """Without a prefix, the one with the fewest open requests; among equals, in turns."""
    balance = Balance(3)
    assert [place(balance, range(3)) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    balance.end(1)
    assert place(balance, range(3)) == 1
    for each in range(3):
        balance.end(each)
    assert place(balance, (1, 2)) == 2


def test_prefers_who_has_read_the_prompt():
    """Within the slack; beyond it the least loaded is chosen, and has read it from then on."""
    balance = Balance(2, slack=2)
    blocks = blocks_of(LONG)
    assert [place(balance, range(2), blocks) for _ in range(4)] == [0, 0, 0, 1]
    assert [load.open for load in balance.loads] == [3, 1]
    assert place(balance, range(2), blocks) == 1  # both know it now
    for _ in range(3):
        balance.end(0)
    assert place(balance, range(2), blocks) == 0


def test_longest_prefix_wins():
    """Of two that know some of it, the one that knows more, though it has more to do."""
    balance = Balance(2, min_share=0.0)
    balance.begin(0, [1, 2])
    balance.begin(1, [1, 2, 3])
    balance.begin(1, [])
    assert balance.choose(range(2), [1, 2, 3, 4]) == 1
    assert balance.choose(range(2), [1, 2, 9, 9]) == 0


def test_little_in_common_does_not_count():
    """Less than half of the prompt: all prompts of a service begin alike, and would all go to one replica."""
    balance = Balance(2)
    balance.begin(0, [1, 2, 3])
    assert balance.choose(range(2), [1, 2, 3, 4, 5, 6]) == 0
    assert balance.choose(range(2), [1, 2, 3, 4, 5, 6, 7]) == 1


def test_only_those_that_are_ready():
    """Whatever the others know or have to do."""
    balance = Balance(3)
    balance.begin(0, [1, 2])
    balance.begin(1, [])
    assert balance.choose([1], [1, 2]) == 1
    balance.forget(0)
    assert balance.choose(range(3), [1, 2]) == 2


def test_counts_what_was_matched():
    """For the metrics: blocks, those known before, requests."""
    balance = Balance(1)
    for _ in range(2):
        place(balance, [0], [1, 2, 3])
    assert (balance.blocks, balance.matched_blocks, balance.loads[0].requests) == (6, 3, 2)


@settings(deadline=None)
@given(
    count=st.integers(1, 5),
    slack=st.integers(0, 6),
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.lists(st.integers(0, 200), max_size=3)), max_size=120
    ),
)
def test_load_stays_within_the_slack(count, slack, steps):
    """Whatever comes and ends in whatever order: nobody is chosen who has more than the slack above the least."""
    balance = Balance(count, slack=slack)
    running: list[int] = []
    for prompt, length, ended in steps:
        blocks = [hash((prompt, at)) for at in range(length)]
        loads = [load.open for load in balance.loads]
        chosen = place(balance, range(count), blocks)
        assert loads[chosen] <= min(loads) + slack
        running.append(chosen)
        for number in ended:
            if running:
                balance.end(running.pop(number % len(running)))
    assert sorted(running) == sorted(number for number, load in enumerate(balance.loads) for _ in range(load.open))


@settings(deadline=None)
@given(count=st.integers(1, 5), slack=st.integers(0, 6), prompts=st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_loads_differ_by_the_slack_at_most(count, slack, prompts):
    """Of requests that stay open, no replica ever has more than the slack, and the one just given, above another."""
    balance = Balance(count, slack=slack)
    for prompt in prompts:
        place(balance, range(count), [prompt])
        loads = [load.open for load in balance.loads]
        assert max(loads) - min(loads) <= slack + 1
