"""Steps over caches: laid out as an engine would, and refused where they cannot be right."""

import pytest
import torch

from inference_pio.interfaces import CacheGroup
from inference_pio.testing import contiguous_cache, load_model, paged_cache, random_pages, run_schedule, trace_model
from inference_pio.testing._equivalence import random_schedule
from inference_pio.testing._run import step_batch


@pytest.fixture(scope="module")
def loaded(toy, checkpoint):
    """A sound toy model."""
    return load_model(toy(), checkpoint)


def test_step_layout_by_hand():
    """Two of three sequences run, the second one over a page border."""
    sequences = [[10, 11, 12], [20, 21, 22, 23], [30]]
    step = step_batch(sequences, [1, 1, 0], [2, 3, 0], [[4], [7, 2], [0]], page_size=3)
    assert step.token_ids.tolist() == [11, 12, 21, 22, 23]
    assert step.positions.tolist() == [1, 2, 1, 2, 3]
    assert step.query_starts.tolist() == [0, 2, 5]
    assert step.seq_lens.tolist() == [3, 4]
    assert step.block_tables.tolist() == [[4, -1], [7, 2]]
    assert step.slot_mapping.tolist() == [13, 14, 22, 23, 6]


def test_step_layout_of_groups():
    """Each group has pages of its own; a window leaves pages behind, and states have one page per sequence."""
    groups = [
        CacheGroup(kind="full", num_pages=8),
        CacheGroup(kind="window", window=3, num_pages=8),
        CacheGroup(kind="state", num_pages=8),
    ]
    step = step_batch([[1] * 7, [2] * 2], [5, 0], [1, 2], [[7, 2, 5], [1]], page_size=2, groups=groups)
    window, state = step.others
    assert step.block_tables.tolist() == [[7, 2, 5], [1, -1, -1]]
    assert step.slot_mapping.tolist() == [11, 2, 3]
    assert window.block_tables.tolist() == [[-1, 3, 6], [2, -1, -1]]
    assert window.slot_mapping.tolist() == [13, 4, 5]
    assert state.block_tables.tolist() == [[1], [3]]
    assert state.slot_mapping.tolist() == []


@pytest.mark.parametrize("schedule", [[[2, 1]], [[3, 1], [0, 1]], [[4, 1]]])
def test_schedule_must_run_each_token_once(loaded, schedule):
    """A schedule that stops early or goes too far is a mistake in the test that uses it."""
    cache = contiguous_cache(loaded, num_sequences=2, max_length=8)
    with pytest.raises(ValueError, match="the schedule runs"):
        run_schedule(loaded, [[1, 2, 3], [4]], schedule, cache=cache, pages=[[0], [1]])


def test_random_pages_are_distinct_and_enough():
    """No two sequences share a page."""
    pages = random_pages([5, 1, 8], num_pages=9, page_size=2, seed=1)
    assert [len(own) for own in pages] == [3, 1, 4]
    flat = [page for own in pages for page in own]
    assert len(set(flat)) == 8
    assert flat != sorted(flat)
    assert max(flat) < 9


def test_random_pages_of_a_pool_that_is_too_small():
    """The numbers are in the message."""
    with pytest.raises(ValueError, match="8 pages of 2 tokens are needed, and there are 7"):
        random_pages([5, 1, 8], num_pages=7, page_size=2)


@pytest.mark.parametrize("lengths", [[1], [9], [3, 1, 5], [7, 7]])
def test_random_schedules_end_exactly(lengths):
    """Every token once, and no step without work."""
    for seed in range(5):
        schedule = random_schedule(lengths, largest=4, seed=seed)
        assert [sum(counts) for counts in zip(*schedule, strict=True)] == lengths
        assert all(any(counts) for counts in schedule)


def test_caches_start_stale(loaded):
    """Reading a slot that was never written shows."""
    for cache in (
        contiguous_cache(loaded, num_sequences=1, max_length=4),
        paged_cache(loaded, num_pages=2, page_size=2),
    ):
        assert float(cache.layer(2).key_pages.min()) == float(cache.layer(2).value_pages.min()) == 1e4


def test_trace_records_each_layer(loaded):
    """One hidden state per decoder layer, and the hooks are gone afterwards."""
    trace = trace_model(loaded, [1, 2, 3])
    assert [tuple(hidden.shape) for hidden in trace.layers] == [(3, 64)] * 3
    assert trace.logits.shape == (3, 131)
    assert all(not layer._forward_hooks for layer in loaded.module.layers)
    assert torch.isfinite(trace.logits).all()
