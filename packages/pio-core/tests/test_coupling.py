"""Speculation with common draws changes no token, and so no distribution.

The target chooses each token with its own number in [0, 1), whether the token was drafted or not; a draft is kept if it
is that choice. A proposer that draws from its own distribution with the same numbers is right where the two cumulative
distributions agree. For 1,000 tokens with normal logits of scale 3, of which the draft sees a version with noise of
scale 0.3, such drafts are right 54 times of 100, the draft's most likely token 30 times; no coupling whatever could do
better than sum(min(p, q)), 89.
"""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.core._host_sampler import HostSampler
from inference_pio.core._speculation import count_accepted
from inference_pio.interfaces import SamplingBatch

V = 6
LENGTH = 3
RUNS = 6_000


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def choose(logits, contexts, uniforms, temperature=1.0):
    """One token after each of the contexts (R,) under a table of logits (C, V)."""
    size = len(contexts)
    batch = SamplingBatch(
        rows=np.asarray(contexts, dtype=np.int64),
        bias=None,
        repetition=None,
        penalties=None,
        masks=None,
        temperature=np.full(size, temperature, dtype=np.float32),
        top_k=np.zeros(size, dtype=np.int32),
        typical_p=np.ones(size, dtype=np.float32),
        top_p=np.ones(size, dtype=np.float32),
        min_p=np.zeros(size, dtype=np.float32),
        uniforms=np.asarray(uniforms, dtype=np.float64),
    )
    return HostSampler().sample(logits, batch)


@pytest.fixture(scope="module")
def toy():
    """A target and a draft, as logits after each of V tokens, and the draws of many runs."""
    generator = np.random.default_rng(7)
    target = generator.normal(scale=1.2, size=(V, V)).astype(np.float32)
    draft = (target + generator.normal(scale=0.7, size=(V, V))).astype(np.float32)
    uniforms = generator.random((RUNS, 4 * LENGTH))
    return target, draft, uniforms


def plain(target, uniforms):
    """Token after token, (RUNS, LENGTH); each run starts after token 0."""
    tokens = [np.zeros(len(uniforms), dtype=np.int64)]
    for position in range(LENGTH):
        tokens.append(choose(target, tokens[-1], uniforms[:, position]))
    return np.stack(tokens[1:], axis=1)


def propose_coupled(draft, context, uniforms, generator):
    return choose(draft, context, uniforms)


def propose_greedy(draft, context, uniforms, generator):
    return draft.argmax(axis=1)[context]


def propose_anything(draft, context, uniforms, generator):
    return generator.integers(V, size=len(context))


def speculate(target, draft, uniforms, propose, num_draft):
    """The same by speculation, and the share of accepted drafts among those that were tried."""
    generator = np.random.default_rng(11)
    everyone = np.arange(len(uniforms))
    texts = [[] for _ in everyone]
    accepted = tried = 0
    while any(len(text) < LENGTH for text in texts):
        done = np.array([len(text) for text in texts])
        contexts = [np.array([text[-1] if text else 0 for text in texts])]
        sampled = []
        for ahead in range(num_draft + 1):
            draws = uniforms[everyone, np.minimum(done + ahead, uniforms.shape[1] - 1)]
            sampled.append(choose(target, contexts[-1], draws))
            contexts.append(propose(draft, contexts[-1], draws, generator))
        drafts, samples = np.stack(contexts[1:-1], axis=1), np.stack(sampled, axis=1)
        for text, proposal, sample in zip(texts, drafts.tolist(), samples.tolist(), strict=True):
            if len(text) < LENGTH:
                right = count_accepted(proposal, sample)
                text.extend(sample[: right + 1])
                accepted += right
                tried += right + (right < num_draft)
    return np.array([text[:LENGTH] for text in texts]), accepted / tried


def chi_square(texts, target):
    """Pearson's statistic over all strings of LENGTH tokens, with the exact probabilities, and its 0.9995 quantile."""
    probabilities = softmax(target)
    expected = probabilities[0]
    for _ in range(LENGTH - 1):
        expected = (expected[..., None] * probabilities).reshape(*expected.shape, V)
    expected = expected.ravel() * len(texts)
    cells = np.ravel_multi_index(texts.T, (V,) * LENGTH)
    observed = np.bincount(cells, minlength=V**LENGTH)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    freedom = expected.size - 1
    # Wilson and Hilferty 1931: the cube root of chi-square over its degrees of freedom is nearly normal.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.29 * np.sqrt(2 / (9 * freedom))) ** 3
    return ((observed - expected) ** 2 / expected).sum(), limit


@pytest.mark.parametrize("num_draft", [1, 3])
@pytest.mark.parametrize("propose", [propose_coupled, propose_greedy, propose_anything])
def test_speculation_equals_plain_decoding_draw_for_draw(toy, propose, num_draft):
    """Whatever is proposed, the text is that of plain decoding with the same draws, and follows the target exactly."""
    target, draft, uniforms = toy
    texts, rate = speculate(target, draft, uniforms, propose, num_draft)
    np.testing.assert_array_equal(texts, plain(target, uniforms))
    statistic, limit = chi_square(texts, target)
    assert statistic < limit
    assert 0.1 < rate < 0.95


def test_statistics_would_notice_another_distribution(toy):
    """The draft's own text, and text that keeps each first draft, are not taken for the target's."""
    target, draft, uniforms = toy
    for texts in (plain(draft, uniforms), _unverified_first(target, draft, uniforms)):
        statistic, limit = chi_square(texts, target)
        assert statistic > 2 * limit


def _unverified_first(target, draft, uniforms):
    first = choose(draft, np.zeros(len(uniforms)), uniforms[:, 0])
    second = choose(target, first, uniforms[:, 1])
    return np.stack([first, second, choose(target, second, uniforms[:, 2])], axis=1)


def test_coupled_drafts_are_right_more_often_than_greedy_ones():
    """How often a draft is right, in order: never more than the optimum; the figures of this module's docstring."""
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(100):
        target = generator.normal(scale=3.0, size=1000).astype(np.float32)
        draft = (target + 0.3 * generator.normal(size=1000)).astype(np.float32)
        p, q = softmax(target), softmax(draft)
        draws = generator.random(500)
        contexts = np.zeros(500)
        chosen = choose(target[None], contexts, draws)
        coupled = float(np.mean(chosen == choose(draft[None], contexts, draws)))
        greedy = float(np.mean(chosen == choose(draft[None], contexts, draws, temperature=0.0)))
        rates.append((coupled, greedy, float(np.minimum(p, q).sum()), _overlap(p, q)))
    coupled, greedy, optimum, overlap = np.mean(rates, axis=0)
    assert coupled == pytest.approx(0.54, abs=0.03)
    assert greedy == pytest.approx(0.30, abs=0.03)
    assert optimum == pytest.approx(0.89, abs=0.01)
    assert coupled == pytest.approx(overlap, abs=0.01)


def _overlap(p, q):
    """The exact rate of common draws: what the intervals of each token under both distributions share."""
    ends = np.cumsum(p), np.cumsum(q)
    shared = np.minimum(*ends) - np.maximum(ends[0] - p, ends[1] - q)
    return np.maximum(shared, 0.0).sum()


def test_coupled_drafts_of_the_same_distribution_are_always_right():
    """A draft model that agrees with the target is never rejected."""
    generator = np.random.default_rng(1)
    logits = generator.normal(scale=3.0, size=(1, 5000)).astype(np.float32)
    draws = generator.random(2000)
    contexts = np.zeros(2000)
    np.testing.assert_array_equal(choose(logits, contexts, draws), choose(logits.copy(), contexts, draws))


@pytest.mark.parametrize("propose", [propose_coupled, propose_greedy])
def test_greedy_target_accepts_what_agrees(toy, propose):
    """At temperature 0 the same rule compares most likely tokens: the text is greedy decoding's."""
    target, draft, _ = toy
    texts, _ = speculate(target * 1e4, draft * 1e4, np.full((8, 4 * LENGTH), 0.5), propose, 2)
    expected = [0]
    for _ in range(LENGTH):
        expected.append(int(target[expected[-1]].argmax()))
    assert texts.tolist() == [expected[1:]] * 8
