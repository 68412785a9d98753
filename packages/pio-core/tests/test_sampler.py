"""Sampling against transformers' logits processors and against arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inference_pio.core._sampler import SamplerState, choose, distribution, log_softmax, top_logprobs
from inference_pio.interfaces import EngineError, SamplingParams

VOCAB = 500


@pytest.fixture
def logits():
    return np.random.default_rng(3).normal(scale=3.0, size=VOCAB).astype(np.float32)


def state_of(prompt=(), generated=(), end_ids=(), **params):
    state = SamplerState(SamplingParams(**params), list(prompt), index=0, end_ids=end_ids)
    for token_id in generated:
        state.record(token_id)
    return state


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 10_000},
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"temperature": 1.3, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
    ],
    ids=str,
)
def test_distribution_equals_transformers(logits, params):
    """Kept tokens and their probabilities equal transformers' warpers in the same order."""
    torch = pytest.importorskip("torch", reason="the oracle runs on torch")
    process = pytest.importorskip("transformers.generation.logits_process", reason="the oracle is transformers")
    scores = torch.from_numpy(logits)[None].double()
    warpers = [
        process.TemperatureLogitsWarper(params.get("temperature", 1.0)),
        *([process.TopKLogitsWarper(params["top_k"])] if "top_k" in params else []),
        *([process.TopPLogitsWarper(params["top_p"])] if "top_p" in params else []),
        *([process.MinPLogitsWarper(params["min_p"])] if "min_p" in params else []),
    ]
    for warper in warpers:
        scores = warper(None, scores)
    oracle = scores.softmax(-1)[0].numpy()
    candidates, probabilities = distribution(logits, SamplingParams(**params))
    assert candidates.tolist() == np.flatnonzero(oracle).tolist()
    np.testing.assert_allclose(probabilities, oracle[candidates], rtol=1e-6)


def test_repetition_penalty_equals_transformers(logits):
    """Prompt and text are penalised as transformers' processor does."""
    torch = pytest.importorskip("torch", reason="the oracle runs on torch")
    process = pytest.importorskip("transformers.generation.logits_process", reason="the oracle is transformers")
    tokens = [3, 17, 17, 400]
    oracle = process.RepetitionPenaltyLogitsProcessor(1.7)(
        torch.tensor([tokens]), torch.from_numpy(logits.copy())[None]
    )
    state = state_of(prompt=tokens[:2], generated=tokens[2:], repetition_penalty=1.7)
    np.testing.assert_allclose(state.adjust(logits), oracle[0].numpy(), rtol=1e-6)


def test_presence_and_frequency_look_at_the_text_only(logits):
    """The text's tokens lose presence once and frequency per occurrence; the prompt's lose nothing."""
    state = state_of(prompt=[1, 2], generated=[5, 5, 9], presence_penalty=0.5, frequency_penalty=0.25)
    wanted = logits.copy()
    wanted[5] -= 0.5 + 2 * 0.25
    wanted[9] -= 0.5 + 0.25
    np.testing.assert_allclose(state.adjust(logits), wanted, rtol=1e-6)


def test_bias_is_added_and_input_is_left_alone(logits):
    """A bias changes only its tokens, and never the array that was handed in."""
    before = logits.copy()
    state = state_of(logit_bias={7: 100.0, 8: -100.0}, temperature=0.0)
    assert choose(logits, state) == 7
    np.testing.assert_array_equal(logits, before)
    assert state_of().adjust(logits) is logits


def test_end_tokens_wait_for_min_tokens(logits):
    """Before ``min_tokens`` an end token cannot be chosen, after it can."""
    best = int(logits.argmax())
    state = state_of(end_ids=[best], min_tokens=1, temperature=0.0)
    first = choose(logits, state)
    assert first == int(np.argsort(-logits)[1])
    state.record(first)
    assert choose(logits, state) == best


def test_draws_follow_the_distribution(logits):
    """20,000 draws agree with the probabilities: chi-square over the likely tokens stays below its 1e-6 quantile."""
    params = SamplingParams(temperature=1.0, top_k=10, seed=5)
    state = SamplerState(params, [], index=0, end_ids=())
    candidates, probabilities = distribution(logits, params)
    draws = np.array([choose(logits, state) for _ in range(20_000)])
    observed = np.array([(draws == token_id).sum() for token_id in candidates])
    assert observed.sum() == 20_000
    statistic = ((observed - 20_000 * probabilities) ** 2 / (20_000 * probabilities)).sum()
    assert statistic < 46.0  # 9 degrees of freedom: P = 6e-7


def test_seeds_repeat_and_streams_differ(logits):
    """The same seed and index draw the same tokens; another index or seed draws others."""

    def draw(seed, index):
        state = SamplerState(SamplingParams(seed=seed), [], index=index, end_ids=())
        return [choose(logits, state) for _ in range(20)]

    assert draw(1, 0) == draw(1, 0)
    assert len({tuple(draw(1, 0)), tuple(draw(1, 1)), tuple(draw(2, 0)), tuple(draw(-1, 0))}) == 4


@pytest.mark.parametrize("temperature", [1e-8, 1e-3])
def test_tiny_temperatures_take_the_best(logits, temperature):
    """A temperature near 0 is greedy, without overflow."""
    assert choose(logits, state_of(temperature=temperature, seed=0)) == int(logits.argmax())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(logits, value):
    """NaN or infinity in the logits stops the request with the token and the way out."""
    logits[33] = value
    with pytest.raises(EngineError, match="token 33"):
        choose(logits, state_of())


def test_masked_logits_are_fine(logits):
    """-inf masks a token and nothing else."""
    logits[logits.argmax()] = -np.inf
    assert choose(logits, state_of(temperature=0.0)) == int(logits.argmax())


def test_log_softmax_and_ranks():
    """Log-probabilities equal the formula; ranks count from 1; the chosen token is always there."""
    logits = np.array([1.0, 3.0, 2.0, -1.0], dtype=np.float32)
    logprobs = log_softmax(logits)
    assert np.exp(logprobs).sum() == pytest.approx(1.0)
    top = top_logprobs(logprobs, 2, chosen=3)
    assert list(top) == [1, 2, 3]
    assert [rank for _, rank in top.values()] == [1, 2, 4]
    assert list(top_logprobs(logprobs, 0, chosen=2)) == [2]
    assert list(top_logprobs(logprobs, 10, chosen=2)) == [1, 2, 0, 3]
