"""Budgets become pages: within bounds, never too many, and with a way out where nothing fits."""

from __future__ import annotations

import re
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.cache import CacheManager, plan_groups
from inference_pio.interfaces import CacheGroup, DoesNotFitError, KVSpec, LatentSpec, StateSpec, group_layers

FULL = KVSpec(num_kv_heads=2, head_dim=8)  # 32 elements per token
WINDOW = KVSpec(num_kv_heads=2, head_dim=8, window=32)
LATENT = LatentSpec(rank=24, rope_dim=8)
STATE = StateSpec(shapes=((4, 16), (2, 8)))  # 80 elements, 320 bytes
LOAD = {"dtype_bytes": 2, "page_size": 16, "max_num_seqs": 4, "max_model_len": 256, "max_step_tokens": 64}
PAGE = 32 * 16 * 2  # bytes of one page of one layer


@pytest.mark.parametrize("spec", [FULL, LATENT])
def test_the_budget_is_used_up_to_what_can_be_needed(spec):
    """One group takes all of a small budget, and of a large one what the sequences can fill."""
    assert plan_groups([spec] * 3, budget_bytes=3 * PAGE * 20 + 5, **LOAD) == (CacheGroup(kind="full", num_pages=20),)
    assert plan_groups([spec] * 3, budget_bytes=10**9, **LOAD) == (CacheGroup(kind="full", num_pages=4 * 16),)


def test_elements_may_be_smaller_than_their_scales():
    """An int8 cache with its scales has a fraction of a byte more per element."""
    (group,) = plan_groups([FULL], budget_bytes=PAGE * 20, **{**LOAD, "dtype_bytes": 1.25})
    assert group.num_pages == 20 * PAGE // 640


def test_windows_take_what_running_sequences_can_hold():
    """Beyond that, memory goes to the layers that keep all tokens; below, each group has its layers' share."""
    full, window = plan_groups([FULL, WINDOW, WINDOW], budget_bytes=10**9, **LOAD)
    assert (full.num_pages, window.window) == (64, 32)
    assert window.num_pages == (4 * (32 + 2 * 16 - 3) + 64) // 16
    full, window = plan_groups([FULL, WINDOW, WINDOW], budget_bytes=PAGE * 40, **LOAD)
    assert full.num_pages + 2 * window.num_pages in {39, 40}
    assert full.num_pages >= 16  # one sequence of 256 tokens
    assert window.num_pages >= 7  # one window and one step


def test_states_get_a_page_each_and_room_for_checkpoints():
    """As many states as sequences, checkpoints besides; tight budgets keep a share for tokens."""
    full, state = plan_groups([FULL, STATE], budget_bytes=10**6, **LOAD)
    assert (full.num_pages, state.num_pages) == (64, 4 + 64)
    full, state = plan_groups([FULL, STATE], budget_bytes=16 * PAGE + 320 + 1280, **LOAD)
    assert (full.num_pages, state.num_pages) == (16, 1 + 2)
    (state,) = plan_groups([STATE], budget_bytes=320 * 10, **LOAD)
    assert state.num_pages == 10


def test_states_are_float32_whatever_the_cache_is():
    """The element size of keys and values does not concern states."""
    (state,) = plan_groups([STATE], budget_bytes=320 * 10, **{**LOAD, "dtype_bytes": 1})
    assert state.num_pages == 10


def test_host_memory_is_shared_like_the_device():
    """The groups' host pages stand in the same proportion as their pages."""
    full, window = plan_groups([FULL, WINDOW], budget_bytes=10**9, host_budget_bytes=PAGE * 42, **LOAD)
    assert full.num_host_pages == 64 * 42 // (64 + window.num_pages)
    assert window.num_host_pages == window.num_pages * 42 // (64 + window.num_pages)


def test_what_does_not_fit_is_told_with_a_way_out():
    """The message says how much is needed; the hints it gives are true."""
    with pytest.raises(
        DoesNotFitError, match=f"one sequence of 256 tokens needs {16 * PAGE} bytes.*{10 * PAGE}"
    ) as info:
        plan_groups([FULL], budget_bytes=10 * PAGE, **LOAD)
    assert info.value.exit_code == 4
    bytes_, length = map(int, re.findall(r"to (\d+)", str(info.value.hint)))
    assert (bytes_, length) == (16 * PAGE, 160)
    plan_groups([FULL], budget_bytes=bytes_, **LOAD)
    plan_groups([FULL], budget_bytes=10 * PAGE, **{**LOAD, "max_model_len": length})
    with pytest.raises(DoesNotFitError, match="161 tokens"):
        plan_groups([FULL], budget_bytes=10 * PAGE, **{**LOAD, "max_model_len": length + 1})
    with pytest.raises(DoesNotFitError, match="the budget is -5") as info:
        plan_groups([FULL], budget_bytes=-5, **LOAD)
    assert "max_model_len" not in str(info.value.hint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"specs": []}, "0 layers"),
        ({"page_size": 0}, "positive sizes"),
        ({"max_num_seqs": 0}, "positive sizes"),
        ({"max_step_tokens": -1}, "positive sizes"),
        ({"host_budget_bytes": -1}, "host -1"),
        ({"specs": [StateSpec(shapes=())]}, "keep something"),
    ],
)
def test_sizes_without_a_meaning_are_refused(change, words):
    """The message names what was passed."""
    settings_ = {"specs": [FULL], "budget_bytes": 10**9, **LOAD, **change}
    with pytest.raises(ValueError, match=words):
        plan_groups(settings_.pop("specs"), **settings_)


@settings(max_examples=150, deadline=None)
@given(
    specs=st.lists(st.sampled_from([FULL, LATENT, WINDOW, KVSpec(num_kv_heads=1, head_dim=4, window=7), STATE]),
                   min_size=1, max_size=6),
    budget=st.integers(0, 10**6), page_size=st.sampled_from([1, 4, 16]), max_num_seqs=st.integers(1, 5),
    max_model_len=st.integers(1, 100), max_step_tokens=st.integers(1, 64), dtype_bytes=st.sampled_from([1, 1.125, 2]),
)  # fmt: skip
def test_plans_stay_within_the_budget_and_hold_a_sequence(
    specs, budget, page_size, max_num_seqs, max_model_len, max_step_tokens, dtype_bytes
):
    """Whatever the layers are, a plan weighs no more than its budget, and carries the longest sequence."""
    load = {"page_size": page_size, "max_num_seqs": max_num_seqs, "max_model_len": max_model_len,
            "max_step_tokens": max_step_tokens, "dtype_bytes": dtype_bytes}  # fmt: skip
    try:
        groups = plan_groups(specs, budget_bytes=budget, **load)
    except DoesNotFitError as error:
        (need,) = re.findall(r"budget to (\d+)", str(error.hint))
        assert int(need) > budget
        groups, budget = plan_groups(specs, budget_bytes=int(need), **load), int(need)
    weight = 0
    for layers, group in zip(group_layers(specs), groups, strict=True):
        assert (group.kind, group.window) == (layers.kind, layers.window)
        for layer in layers.layers:
            spec = specs[layer]
            size = 4 * spec.elements if isinstance(spec, StateSpec) else None
            weight += group.num_pages * (size or ceil(spec.elements_per_token * page_size * dtype_bytes))
    assert weight <= budget
    manager = CacheManager(groups, page_size=page_size)
    assert manager.can_hold(max_model_len)
    seq = manager.open([0] * max_model_len)
    assert manager.admit(seq, max_model_len, expected=max_model_len)
    while seq.num_computed < max_model_len:
        end = min(seq.num_computed + max_step_tokens, max_model_len)
        assert manager.grow(seq, end)
        manager.commit(seq, end)
    manager.check()


@pytest.mark.parametrize("step", [[1, 1, 1], [10, 1, 1], [4, 4, 4], [2, 5, 5], [12, 0, 0]])
def test_planned_windows_never_run_short(step):
    """All sequences slide at once, their steps within the limit, and each finds its pages."""
    (group,) = plan_groups(
        [WINDOW], budget_bytes=10**9, dtype_bytes=2, page_size=4, max_num_seqs=3, max_model_len=500, max_step_tokens=12
    )
    manager = CacheManager([group], page_size=4, prefix_caching=False)
    seqs = [manager.open([0] * 500) for _ in step]
    for seq, count in zip(seqs, step, strict=True):
        assert manager.admit(seq, 1, expected=500)
        assert manager.grow(seq, 1 + count % 4)
        manager.commit(seq, 1 + count % 4)
    for _ in range(30):
        for seq, count in zip(seqs, step, strict=True):
            assert manager.grow(seq, seq.num_computed + count)
        for seq, count in zip(seqs, step, strict=True):
            manager.commit(seq, seq.num_computed + count)
    manager.check()
