"""Drawing on a device equals drawing on the host."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from inference_pio.core._host_sampler import HostSampler
from inference_pio.core._sampler_state import SamplerState
from inference_pio.core._sampling_batch import SamplingRow, sampling_batch
from inference_pio.interfaces import LogprobQuery, Sampler, SamplingParams

torch = pytest.importorskip("torch", reason="this sampler is torch's")
TorchSampler = pytest.importorskip("inference_pio.core.torch_sampler", reason="needs torch").TorchSampler

FILTERS = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 60, "top_p": 0.8},
    {"top_k": 3000, "top_p": 0.8},
    {"top_k": 10_000_000},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"typical_p": 0.7},
    {"temperature": 1.2, "top_k": 50, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.02},
]
EDITS = [
    {},
    {"logit_bias": {3: 4.0, 2: -5.0}},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 0.8, "min_tokens": 16},
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def mixed_batch(vocab_size, seed, *, masked=False, parameters=None):
    """Rows of every combination of filters and edits, in random order, some drawn from the same logits."""
    rng = np.random.default_rng(seed)
    rows = []
    for filters, edits in itertools.product(FILTERS, EDITS) if parameters is None else parameters:
        prompt, text = rng.integers(0, vocab_size, size=(2, 12)).tolist()
        params = SamplingParams(seed=int(rng.integers(2**32)), max_tokens=None, **filters, **edits)
        state = SamplerState(params, prompt, index=0, end_ids=[0, 1], bad_words=[(2,)])
        for token_id in text:
            state.record(token_id)
        rows.append(SamplingRow(int(rng.integers(8)), state, (1,)))
    rows = [rows[place] for place in rng.permutation(len(rows))]
    masks = None
    if masked:
        words = rng.integers(-(2**31), 2**31, size=(len(rows), -(-vocab_size // 32))).astype(np.int32)
        masks = np.where(rng.random((len(rows), 1)) < 0.3, np.int32(-1), words)
    logits = rng.normal(scale=2.5, size=(8, vocab_size)).astype(np.float32)
    return logits, sampling_batch(rows, vocab_size=vocab_size, masks=masks)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("vocab_size", [5, 257, 5000])
def test_a_mixed_batch_equals_the_host(device, masked, vocab_size):
    """All filters and edits at once draw the host's tokens, and leave the logits alone."""
    logits, batch = mixed_batch(vocab_size, seed=vocab_size, masked=masked)
    tensor = torch.from_numpy(logits.copy()).to(device)
    tokens = TorchSampler(device).sample(tensor, batch)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == HostSampler().sample(logits, batch).tolist()
    np.testing.assert_array_equal(tensor.cpu().numpy(), logits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_each_filter_alone_equals_the_host(device, filters):
    """A batch of one kind of rows, in the order of the logits, takes the shortest way and draws the same."""
    logits, batch = mixed_batch(3000, seed=1, parameters=[(filters, {})] * 8)
    batch = dataclasses.replace(batch, rows=np.arange(8), penalties=None)
    tensor = torch.from_numpy(logits.copy()).to(device)
    assert TorchSampler(device).sample(tensor, batch).tolist() == HostSampler().sample(logits, batch).tolist()
    np.testing.assert_array_equal(tensor.cpu().numpy(), logits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "params", [{"top_k": 2}, {"top_p": 0.6}, {"top_k": 2, "top_p": 0.5}, {"top_k": 1, "top_p": 0.5}]
)
def test_equals_at_the_edge_equal_the_host(device, params):
    """Where tokens tie at the edge of a filter, both keep the same ones: support and shares agree."""
    logits = np.array([[0.0, 1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    uniforms = np.arange(0.003, 1.0, 0.01)
    for row, other in ((0, {}), (1, {"top_k": 4, "top_p": 0.7})):
        parameters = [SamplingParams(**params)] * uniforms.size + ([SamplingParams(**other)] if other else [])
        states = [SamplerState(each, [], index=0, end_ids=()) for each in parameters]
        batch = sampling_batch([SamplingRow(row, state) for state in states], vocab_size=5)
        batch = dataclasses.replace(batch, uniforms=np.resize(uniforms, len(states)))
        tokens = TorchSampler(device).sample(torch.from_numpy(logits).to(device), batch)
        assert tokens.tolist() == HostSampler().sample(logits, batch).tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_without_a_choice_give_minus_one(device, masked):
    """NaN, ``+inf`` and nothing finite give -1 as on the host, whatever the parameters; other rows are drawn."""
    logits, batch = mixed_batch(300, seed=4, masked=masked)
    logits[1, 299] = math.nan
    logits[2] = math.nan
    logits[3] = -math.inf
    logits[4, 7] = math.inf
    tokens = TorchSampler(device).sample(torch.from_numpy(logits).to(device), batch)
    wanted = HostSampler().sample(logits, batch)
    assert tokens.tolist() == wanted.tolist()
    assert (wanted[np.isin(batch.rows, [1, 2, 3])] == -1).all()
    assert (wanted[np.isin(batch.rows, [0, 5, 6, 7])] >= 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows_and_one_token(device):
    """An empty batch gives no tokens; a vocabulary of one leaves one choice."""
    sampler = TorchSampler(device)
    assert isinstance(sampler, Sampler)
    assert sampler.sample(torch.zeros(0, 5, device=device), sampling_batch([], vocab_size=5)).shape == (0,)
    state = SamplerState(SamplingParams(top_p=0.5), [], index=0, end_ids=())
    batch = sampling_batch([SamplingRow(0, state)], vocab_size=1)
    assert sampler.sample(torch.zeros(1, 1, device=device), batch).tolist() == [0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab_size", [3, 700])
def test_logprobs_equal_the_host(device, vocab_size):
    """Log-probabilities to rounding, tokens, ranks and order exactly, with equals, over more queries than one pass."""
    rng = np.random.default_rng(6)
    logits = rng.integers(-20, 5, size=(6, vocab_size)).astype(np.float32) / 4
    logits[2, 1] = math.nan
    logits[3] = -math.inf
    logits[4, 0] = -math.inf
    queries = [
        LogprobQuery(int(rng.integers(6)), None if rng.random() < 0.3 else int(rng.integers(3)), int(top))
        for top in rng.integers(0, 21, size=80)
    ] + [LogprobQuery(4, 0, 0)]
    wanted = HostSampler().logprobs(logits, queries)
    answers = TorchSampler(device).logprobs(torch.from_numpy(logits).to(device), queries)
    assert TorchSampler(device).logprobs(torch.from_numpy(logits).to(device), []) == []
    assert wanted[-1][0][0] == -math.inf
    for answer, other in zip(answers, wanted, strict=True):
        assert [(token, rank) for token, (_, rank) in answer.items()] == [
            (token, rank) for token, (_, rank) in other.items()
        ]
        numbers = [[logprob for logprob, _ in each.values()] for each in (answer, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-6)


def test_wrong_logits_are_a_callers_mistake():
    """Logits of another kind are refused with what they are."""
    sampler = TorchSampler("cpu")
    batch = sampling_batch([], vocab_size=5)
    with pytest.raises(ValueError, match=r"on cpu, got ndarray"):
        sampler.sample(np.zeros((1, 5), dtype=np.float32), batch)
    with pytest.raises(ValueError, match=r"got torch.float64 \(1, 5\) on cpu"):
        sampler.logprobs(torch.zeros(1, 5, dtype=torch.float64), [])
