"""From the memories of sequences to arrays."""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.core._sampler_state import SamplerState
from inference_pio.core._sampling_batch import SamplingRow, sampling_batch
from inference_pio.interfaces import SamplingParams


def state_of(prompt=(), text=(), *, end_ids=(), bad_words=(), **params):
    params.setdefault("seed", 0)
    state = SamplerState(SamplingParams(**params), list(prompt), index=0, end_ids=end_ids, bad_words=bad_words)
    for token_id in text:
        state.record(token_id)
    return state


def triples(edits):
    assert (edits.rows.dtype, edits.token_ids.dtype, edits.values.dtype) == (np.int64, np.int64, np.float32)
    pairs = list(zip(edits.rows.tolist(), edits.token_ids.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "a pair comes twice"
    return dict(zip(pairs, edits.values.tolist(), strict=True))


def test_plain_rows_are_five_numbers_and_a_draw():
    """Settings and draws come in the dtypes of the contract, and nobody's edits are None."""
    states = [
        state_of(temperature=0.5, top_k=7, seed=1),
        state_of(temperature=0.0),
        state_of(typical_p=0.5, top_p=0.25, min_p=0.125, seed=3),
    ]
    batch = sampling_batch(
        [SamplingRow(row, state) for row, state in zip([4, 4, 9], states, strict=True)], vocab_size=9
    )
    assert batch.rows.tolist() == [4, 4, 9]
    assert (batch.bias, batch.repetition, batch.penalties, batch.masks) == (None, None, None, None)
    assert batch.temperature.tolist() == [0.5, 0.0, 1.0]
    assert batch.top_k.tolist() == [7, 0, 0]
    assert batch.typical_p.tolist() == [1.0, 1.0, 0.5]
    assert batch.top_p.tolist() == [1.0, 1.0, 0.25]
    assert batch.min_p.tolist() == [0.0, 0.0, 0.125]
    assert batch.uniforms.tolist() == [states[0].uniform(), 0.0, states[2].uniform()]
    dtypes = [getattr(batch, name).dtype.name for name in ("rows", "temperature", "top_k", "min_p", "uniforms")]
    assert dtypes == ["int64", "float32", "int32", "float32", "float64"]


def test_no_rows_are_a_batch_too():
    """An empty batch has empty arrays."""
    batch = sampling_batch([], vocab_size=10)
    assert batch.rows.shape == batch.temperature.shape == batch.uniforms.shape == (0,)
    assert batch.penalties is None


def test_drafts_are_drawn_one_after_the_other():
    """A row that assumes drafts has the draw, the penalties and the end tokens of its own position."""
    state = state_of([3], [5], seed=8, frequency_penalty=1.0, end_ids=[2], min_tokens=2)
    rows = [SamplingRow(0, state), SamplingRow(1, state, (5,)), SamplingRow(2, state, (5, 6))]
    batch = sampling_batch(rows, vocab_size=10)
    assert batch.uniforms.tolist() == [state.uniform(0), state.uniform(1), state.uniform(2)]
    assert triples(batch.penalties) == {
        (0, 5): -1.0,
        (0, 2): -np.inf,
        (1, 5): -2.0,
        (2, 5): -2.0,
        (2, 6): -1.0,
    }


def test_edits_of_many_rows_are_joined_in_order():
    """Each kind of edit names the rows that have it, ascending, and no pair twice."""
    rows = [
        SamplingRow(0, state_of()),
        SamplingRow(1, state_of([1, 1, 2], logit_bias={4: 2.0, 3: -1.0}, repetition_penalty=1.5)),
        SamplingRow(1, state_of([1], [7], bad_words=[(7, 6), (8,)], repetition_penalty=2.0)),
        SamplingRow(5, state_of([], [4], presence_penalty=0.5, logit_bias={0: 1.0})),
    ]
    batch = sampling_batch(rows, vocab_size=10)
    assert triples(batch.bias) == {(1, 4): 2.0, (1, 3): -1.0, (3, 0): 1.0}
    assert triples(batch.repetition) == {(1, 1): 1.5, (1, 2): 1.5, (2, 1): 2.0, (2, 7): 2.0}
    assert triples(batch.penalties) == {(2, 8): -np.inf, (2, 6): -np.inf, (3, 4): -0.5}
    for edits in (batch.bias, batch.repetition, batch.penalties):
        assert edits.rows.tolist() == sorted(edits.rows.tolist())


def test_tokens_without_a_logit_are_left_out():
    """A placeholder in the prompt, beyond the vocabulary or negative, has no logit to penalise."""
    batch = sampling_batch([SamplingRow(0, state_of([-1, 3, 10, 400], repetition_penalty=1.5))], vocab_size=10)
    assert triples(batch.repetition) == {(0, 3): 1.5}
    batch = sampling_batch([SamplingRow(0, state_of([400], repetition_penalty=1.5))], vocab_size=10)
    assert batch.repetition is None


def test_a_batch_does_not_change_when_the_text_goes_on():
    """The arrays are copies: recording the next token leaves a batch that is in flight alone."""
    state = state_of([1], [2], frequency_penalty=1.0, repetition_penalty=2.0)
    batch = sampling_batch([SamplingRow(0, state)], vocab_size=10)
    state.record(2)
    state.record(9)
    assert triples(batch.penalties) == {(0, 2): -1.0}
    assert triples(batch.repetition) == {(0, 1): 2.0, (0, 2): 2.0}


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (0, 2)])
def test_masks_must_fit(shape):
    """Masks are one row per draw and one word per 32 tokens."""
    masks = np.zeros((2, 2), dtype=np.int32)
    rows = [SamplingRow(0, state_of())] * 2
    assert sampling_batch(rows, vocab_size=33, masks=masks).masks is masks
    with pytest.raises(ValueError, match=r"masks must have shape \(2, 2\), got"):
        sampling_batch(rows, vocab_size=33, masks=np.zeros(shape, dtype=np.int32))
