"""Drawing on the host against transformers' warpers: the same uniform number gives the oracle's token."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from inference_pio.core._host_sampler import HostSampler
from inference_pio.core._sampler_state import SamplerState
from inference_pio.core._sampling_batch import SamplingRow, sampling_batch
from inference_pio.interfaces import LogitEdits, LogprobQuery, Sampler, SamplingBatch, SamplingParams

PARAMS = [
    {},
    {"temperature": 0.7},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 40},
    {"top_k": 1500},
    {"top_k": 10_000_000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 30, "typical_p": 0.5},
    {"top_p": 0.8, "min_p": 0.05},
    {"typical_p": 0.8, "top_p": 0.7},
    {"temperature": 1.3, "top_k": 50, "typical_p": 0.95, "top_p": 0.8, "min_p": 0.02},
]
ENDS = [0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53]


def batch_of(rows, uniforms, *, masks=None, bias=None, repetition=None, penalties=None, **params):
    """``rows`` with the same parameters and the given draws."""
    state = SamplerState(SamplingParams(**params), [], index=0, end_ids=())
    batch = sampling_batch([SamplingRow(int(row), state) for row in rows], vocab_size=32)
    return dataclasses.replace(
        batch,
        uniforms=np.asarray(uniforms, dtype=np.float64),
        masks=masks,
        bias=bias,
        repetition=repetition,
        penalties=penalties,
    )


def joined(batches):
    """One batch of the rows of many that have no edits."""
    names = ("rows", "temperature", "top_k", "typical_p", "top_p", "min_p", "uniforms")
    arrays = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names}
    return SamplingBatch(**arrays, bias=None, repetition=None, penalties=None, masks=None)


def oracle_distribution(logits, params):
    """Probabilities (V,) by transformers' warpers in float64, in the order of the contract."""
    torch = pytest.importorskip("torch", reason="the oracle runs on torch")
    process = pytest.importorskip("transformers.generation.logits_process", reason="the oracle is transformers")
    scores = torch.from_numpy(logits)[None].double()
    makers = {
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "typical_p": process.TypicalLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    for name, maker in makers.items():
        if name in params:
            # The contract's arrays are float32, and so is what the oracle is told.
            value = params[name] if name == "top_k" else float(np.float32(params[name]))
            scores = maker(value)(None, scores)
    return scores.softmax(-1)[0].numpy()


def assert_drawn(tokens, distribution, uniforms, *, tolerance=2e-6):
    """Each token is likely at all, and its share of the cumulative probability holds the draw, to rounding."""
    cumulative = np.cumsum(distribution)
    tokens = np.asarray(tokens)
    assert (distribution[tokens] > 0).all(), "a token was drawn that the oracle filters"
    assert (uniforms <= cumulative[tokens] + tolerance).all()
    assert (uniforms >= cumulative[tokens] - distribution[tokens] - tolerance).all()


def edits_of(entries):
    rows, ids, values = zip(*entries, strict=True)
    return LogitEdits(
        rows=np.array(rows, dtype=np.int64),
        token_ids=np.array(ids, dtype=np.int64),
        values=np.array(values, dtype=np.float32),
    )


def mask_of(allowed, vocab_size):
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)[None]


@pytest.mark.parametrize("vocab_size", [1, 5, 127, 1024, 5000])
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_draws_invert_the_oracles_distribution(vocab_size, params):
    """Support, probabilities and order of tokens are transformers' own, for draws over all of [0, 1)."""
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(scale=2.5, size=(2, vocab_size)).astype(np.float32)
    uniforms = np.concatenate([ENDS, rng.random(96)])
    distribution = oracle_distribution(logits[1], params)
    tokens = HostSampler().sample(logits, batch_of([1] * uniforms.size, uniforms, **params))
    assert tokens.dtype == np.int64
    assert_drawn(tokens, distribution, uniforms)


@pytest.mark.parametrize(
    ("scale", "params"),
    [
        (0.0, {}),
        (0.01, {}),
        (8.0, {}),
        (0.01, {"top_p": 0.95}),
        (8.0, {"top_p": 0.95}),
        (0.01, {"top_k": 200, "top_p": 0.5}),
        (8.0, {"typical_p": 0.5}),
    ],
)
def test_a_real_vocabulary_is_drawn_accurately(scale, params):
    """Over 151,936 tokens, flat or peaked, the cumulative probability is off by less than 2e-6."""
    logits = np.random.default_rng(7).normal(scale=scale, size=(1, 151_936)).astype(np.float32)
    uniforms = np.concatenate([ENDS, np.random.default_rng(8).random(60)])
    tokens = HostSampler().sample(logits, batch_of([0] * uniforms.size, uniforms, **params))
    assert_drawn(tokens, oracle_distribution(logits[0], params), uniforms)


def test_draws_follow_the_distribution():
    """20,000 seeded draws: chi-square over ten tokens stays below its 1e-6 quantile."""
    logits = np.random.default_rng(3).normal(scale=3.0, size=(1, 500)).astype(np.float32)
    state = SamplerState(SamplingParams(top_k=10, seed=5), [], index=0, end_ids=())
    batch = batch_of([0] * 20_000, [state.uniform(ahead) for ahead in range(20_000)], top_k=10)
    draws = HostSampler().sample(logits, batch)
    distribution = oracle_distribution(logits[0], {"top_k": 10})
    kept = np.flatnonzero(distribution)
    observed = np.bincount(draws, minlength=500)
    assert observed[kept].sum() == 20_000
    expected = 20_000 * distribution[kept]
    assert ((observed[kept] - expected) ** 2 / expected).sum() < 46.0  # 9 degrees of freedom: P = 6e-7


@pytest.mark.parametrize("vocab_size", [300, 20_000])
def test_rows_do_not_depend_on_each_other(vocab_size):
    """The very number at which a row's token changes is the same to the last bit, alone and in any batch."""
    rng = np.random.default_rng(11)
    logits = rng.normal(scale=2.0, size=(len(PARAMS), vocab_size)).astype(np.float32)
    sampler = HostSampler()

    def alone(row, uniform):
        return int(sampler.sample(logits, batch_of([row], [uniform], **PARAMS[row]))[0])

    edges = []
    for row in range(len(PARAMS)):
        low, high = 0.0, 1.0 - 2.0**-53
        first = alone(row, low)
        while np.nextafter(low, 1.0) < high:
            middle = (low + high) / 2
            low, high = (middle, high) if alone(row, middle) == first else (low, middle)
        edges.append((low, high))
    wanted = [[alone(row, low), alone(row, high)] for row, (low, high) in enumerate(edges)]
    assert sum(first != second for first, second in wanted) >= len(PARAMS) - 3, "rows of several tokens have an edge"
    for _ in range(4):
        order = [(row, side) for row in rng.permutation(len(PARAMS)).tolist() for side in (0, 1)]
        parts = [batch_of([row], [edges[row][side]], **PARAMS[row]) for row, side in order]
        tokens = sampler.sample(logits, joined(parts)).tolist()
        assert tokens == [wanted[row][side] for row, side in order]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 20}, {"top_p": 0.7}], ids=str)
def test_edits_come_in_the_contracts_order(params):
    """Bias, then repetition, then penalties, then masks, equal the same arithmetic in torch; the input stays."""
    torch = pytest.importorskip("torch", reason="the oracle runs on torch")
    process = pytest.importorskip("transformers.generation.logits_process", reason="the oracle is transformers")
    rng = np.random.default_rng(5)
    vocab_size, rows = 500, 6
    logits = rng.normal(scale=2.0, size=(rows, vocab_size)).astype(np.float32)
    before = logits.copy()
    bias, repetition, penalties, masks, adjusted = [], [], [], [], []
    for row in range(rows):
        ids = [rng.choice(vocab_size, size=40, replace=False).tolist() for _ in range(3)]
        added = rng.normal(scale=3.0, size=40).astype(np.float32)
        allowed = range(vocab_size) if row == 0 else rng.choice(vocab_size, size=300, replace=False).tolist()
        bias += [(row, token, value) for token, value in zip(ids[0], added, strict=True)]
        repetition += [(row, token, 1.3) for token in ids[1]]
        penalties += [(row, token, -np.inf if token % 3 == 0 else -0.5) for token in ids[2]]
        masks.append(mask_of(allowed, vocab_size))
        scores = torch.from_numpy(logits[row].copy())[None]
        scores = process.SequenceBiasLogitsProcessor([[[t], float(v)] for t, v in zip(ids[0], added, strict=True)])(
            torch.zeros(1, 1, dtype=torch.long), scores
        )
        scores = process.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids[1]]), scores)[0].numpy()
        for token in ids[2]:
            scores[token] += -np.inf if token % 3 == 0 else -0.5
        forbidden = np.ones(vocab_size, dtype=bool)
        forbidden[list(allowed)] = False
        scores[forbidden] = -np.inf
        adjusted.append(scores)
    shuffled = rng.permutation(len(bias)).tolist()
    uniforms = rng.random(rows)
    batch = batch_of(
        range(rows),
        uniforms,
        bias=edits_of([bias[place] for place in shuffled]),
        repetition=edits_of(repetition),
        penalties=edits_of(penalties),
        masks=np.concatenate(masks),
        **params,
    )
    tokens = HostSampler().sample(logits, batch)
    np.testing.assert_array_equal(logits, before)
    for row, scores in enumerate(adjusted):
        if params.get("temperature") == 0.0:
            assert tokens[row] == scores.argmax()
        else:
            assert_drawn([tokens[row]], oracle_distribution(scores, params), uniforms[[row]])


def test_greedy_takes_the_first_of_equals():
    """Equal logits go to the lowest token id, edited or not."""
    logits = np.zeros((2, 70), dtype=np.float32)
    logits[1, [9, 60]] = 1.0
    plain = batch_of([1, 0, 1], [0, 0, 0], temperature=0.0)
    assert HostSampler().sample(logits, plain).tolist() == [9, 0, 9]
    edited = batch_of([1, 0], [0, 0], temperature=0.0, penalties=edits_of([(0, 9, -1.0), (1, 0, -np.inf)]))
    assert HostSampler().sample(logits, edited).tolist() == [60, 1]


def test_equals_at_the_edge():
    """Top-k keeps all equals of its last token; the smallest set that reaches top-p takes the lower ids."""
    logits = np.log(np.array([[0.1, 0.2, 0.2, 0.2, 0.3]], dtype=np.float32))
    uniforms = np.arange(0.005, 1.0, 0.01)
    rows = [0] * uniforms.size

    def support(**params):
        return sorted(set(HostSampler().sample(logits, batch_of(rows, uniforms, **params)).tolist()))

    assert support(top_k=2) == [1, 2, 3, 4]
    assert support(top_p=0.6) == [1, 2, 4]
    assert support(top_k=2, top_p=0.5) == [1, 4]


@pytest.mark.parametrize("params", [*PARAMS, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("edited", [False, True])
def test_rows_without_a_choice_give_minus_one(params, edited):
    """NaN, ``+inf`` or nothing finite gives -1 for that row; its neighbours are drawn as ever."""
    logits = np.random.default_rng(0).normal(size=(6, 3000)).astype(np.float32)
    good = batch_of([0, 5], [0.3, 0.8], **params)
    wanted = HostSampler().sample(logits, good).tolist()
    logits[1, 2999] = math.nan
    logits[2] = math.nan
    logits[3] = -math.inf
    logits[4, 7] = math.inf
    batch = batch_of(range(6), [0.3, 0.5, 0.5, 0.5, 0.5, 0.8], **params)
    if edited:
        everything = np.full((6, 94), -1, dtype=np.int32)
        everything[1] = mask_of([5], 3000)  # a NaN that a mask would hide is still a NaN
        batch = dataclasses.replace(
            batch, masks=everything, bias=edits_of([(row, 3, 0.0) for row in range(6)]), penalties=None
        )
    assert HostSampler().sample(logits, batch).tolist() == [wanted[0], -1, -1, -1, -1, wanted[1]]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}])
def test_masks_forbid(params):
    """The only allowed token is chosen whatever its logit, and with none allowed there is no choice."""
    logits = np.random.default_rng(0).normal(scale=20.0, size=(2, 100)).astype(np.float32)
    masks = np.concatenate([mask_of([97], 100), mask_of([], 100)])
    batch = batch_of([0, 1], [0.9, 0.9], masks=masks, **params)
    assert HostSampler().sample(logits, batch).tolist() == [97, -1]


@pytest.mark.parametrize("temperature", [1e-40, 1e-8, 1e-3])
def test_tiny_temperatures_take_the_best(temperature):
    """A temperature near 0 is greedy, without overflow."""
    logits = np.random.default_rng(3).normal(scale=3.0, size=(1, 500)).astype(np.float32)
    for params in ({}, {"top_k": 40}, {"top_p": 0.5}, {"typical_p": 0.9}):
        batch = batch_of([0, 0], [0.0, 1.0 - 2.0**-53], temperature=temperature, **params)
        assert HostSampler().sample(logits, batch).tolist() == [int(logits[0].argmax())] * 2


def test_an_empty_batch_and_wrong_logits():
    """No rows give no tokens; logits of another kind are a mistake of the caller."""
    sampler = HostSampler()
    assert isinstance(sampler, Sampler)
    assert sampler.sample(np.zeros((0, 5), dtype=np.float32), batch_of([], [])).shape == (0,)
    with pytest.raises(ValueError, match=r"float32 \(R, V\), got float64 \(1, 5\)"):
        sampler.sample(np.zeros((1, 5)), batch_of([0], [0.5]))
    with pytest.raises(ValueError, match="got list"):
        sampler.logprobs([[0.0]], [])


@pytest.mark.parametrize("vocab_size", [3, 500, 151_936])
def test_logprobs_equal_torch(vocab_size):
    """Log-probabilities and ranks equal torch's float64 log-softmax and its order, for the rows asked for alone."""
    torch = pytest.importorskip("torch", reason="the oracle is torch")
    logits = np.random.default_rng(1).normal(scale=4.0, size=(3, vocab_size)).astype(np.float32)
    logits[1] = math.nan
    oracle = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    queries = [LogprobQuery(2, 1, 0), LogprobQuery(0, None, 5), LogprobQuery(2, 2, 20), LogprobQuery(0, None, 0)]
    answers = HostSampler().logprobs(logits, queries)
    for query, answer in zip(queries, answers, strict=True):
        order = np.argsort(-oracle[query.row], kind="stable").tolist()
        ids = order[: query.top]
        if query.token_id is not None and query.token_id not in ids:
            ids = [*ids, query.token_id]
        assert list(answer) == ids
        for token_id, (logprob, rank) in answer.items():
            assert logprob == pytest.approx(oracle[query.row, token_id], abs=2e-6)
            assert order[rank - 1] == token_id


def test_logprobs_of_equals_and_of_failed_rows():
    """Of equals the lower id ranks first; a row that failed has no log-probabilities."""
    logits = np.array([[1.0, 2.0, 2.0, 1.0], [0.0, math.nan, 0.0, 0.0], [-math.inf] * 4], dtype=np.float32)
    tied, chosen, *failed = HostSampler().logprobs(
        logits, [LogprobQuery(0, 3, 3), LogprobQuery(0, 2, 1), LogprobQuery(1, 0, 2), LogprobQuery(2, 0, 2)]
    )
    assert [(token_id, rank) for token_id, (_, rank) in tied.items()] == [(1, 1), (2, 2), (0, 3), (3, 4)]
    assert [(token_id, rank) for token_id, (_, rank) in chosen.items()] == [(1, 1), (2, 2)]
    assert failed == [{}, {}]
