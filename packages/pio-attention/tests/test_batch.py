"""Layouts of ragged batches, from lists and from the engine's step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference_pio.attention import make_batch, ragged_batch
from inference_pio.interfaces import StepBatch


def test_make_batch_lays_out_the_last_tokens():
    """Slots are those of each sequence's last query_lens positions; short tables are filled up with -1."""
    batch = make_batch([3, 1], [5, 9], [[7, 2], [4, 0, 9]], page_size=4)
    assert batch.query_lens == (3, 1)
    assert batch.seq_lens == (5, 9)
    assert batch.query_starts.tolist() == [0, 3, 4]
    assert batch.block_tables.tolist() == [[7, 2, -1], [4, 0, 9]]
    assert batch.slot_mapping.tolist() == [7 * 4 + 2, 7 * 4 + 3, 2 * 4 + 0, 9 * 4 + 0]
    assert (batch.query_starts.dtype, batch.block_tables.dtype) == (torch.int32, torch.int32)
    assert batch.slot_mapping.dtype == torch.int64


def test_make_batch_without_tables_is_contiguous():
    """Without tables sequence b owns page b, as in a contiguous cache."""
    batch = make_batch([2, 1], [2, 7], page_size=10)
    assert batch.block_tables.tolist() == [[0], [1]]
    assert batch.slot_mapping.tolist() == [0, 1, 16]


def test_make_batch_of_nothing():
    """No sequences give a batch of no tokens."""
    batch = make_batch([], [], [], page_size=4)
    assert batch.query_starts.tolist() == [0]
    assert batch.block_tables.shape == (0, 0)
    assert batch.slot_mapping.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "page_size", "message"),
    [
        (([1], [1], [[0]]), 0, "page_size must be at least 1, got 0"),
        (
            ([1], [1, 2], [[0]]),
            4,
            "1 query_lens, 2 seq_lens and 1 block_tables must be of the same number of sequences",
        ),
        (([0], [1], [[0]]), 4, "sequence 0: query length 0 must be between 1 and its length 1"),
        (([1, 3], [1, 2], [[0], [1]]), 4, "sequence 1: query length 3 must be between 1 and its length 2"),
        (([1], [9], [[0, 1]]), 4, "sequence 0: 2 pages of 4 do not hold 9 tokens"),
        (([1], [5], [[0, -1]]), 4, "sequence 0: page numbers must not be negative, got -1"),
    ],
)
def test_contradictions_are_refused(arguments, page_size, message):
    """Each message names the sequence and both values."""
    with pytest.raises(ValueError, match=message):
        make_batch(*arguments, page_size=page_size)


def test_ragged_batch_equals_make_batch():
    """The engine's step and the lists that describe it give the same layout."""
    expected = make_batch([3, 1], [5, 9], [[7, 2], [4, 0, 9]], page_size=4)
    step = StepBatch(
        token_ids=np.arange(4),
        positions=np.array([2, 3, 4, 8]),
        query_starts=expected.query_starts.numpy(),
        seq_lens=np.array([5, 9], dtype=np.int32),
        block_tables=expected.block_tables.numpy(),
        slot_mapping=expected.slot_mapping.numpy(),
        logit_rows=np.array([2, 3]),
    )
    batch = ragged_batch(step, torch.device("cpu"))
    assert (batch.query_lens, batch.seq_lens) == (expected.query_lens, expected.seq_lens)
    assert all(type(length) is int for length in batch.query_lens + batch.seq_lens)
    for name in ("query_starts", "block_tables", "slot_mapping"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))
        assert getattr(batch, name).dtype == getattr(expected, name).dtype
