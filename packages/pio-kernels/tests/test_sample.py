"""Tokens are drawn as the contract of SamplingBatch says, by every instruction set."""

import ctypes
from dataclasses import dataclass, field

import numpy as np
import pytest

from inference_pio.kernels._library import instruction_sets, load_library

USABLE = [each for each in instruction_sets() if each.usable]
VOCABULARIES = [1, 15, 33, 1000, 4099]


@dataclass
class Options:
    """How to draw, for every row alike."""

    temperature: float = 1.0
    top_k: int = 0
    typical_p: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    masks: np.ndarray | None = field(default=None)


class _Program(ctypes.Structure):
    _fields_ = (
        ("num_ops", ctypes.c_int32),
        ("num_buffers", ctypes.c_int32),
        ("max_tokens", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("ops", ctypes.c_void_p),
        ("buffer_widths", ctypes.c_void_p),
    )


class _Sampling(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("logit_rows", "masks", "temperature", "top_k", "typical_p")),
        *((name, ctypes.c_void_p) for name in ("top_p", "min_p", "uniforms", "chosen")),
    )


def sample(isa, logits, uniforms, options, rows=None):
    """Draws of the native library, one for each of ``uniforms``, from ``rows`` of ``logits`` (R, V)."""
    library = load_library()
    vocab = logits.shape[1]
    draws = len(uniforms)
    rows = np.arange(draws) if rows is None else np.asarray(rows)
    arrays = {
        "logit_rows": rows.astype(np.int64),
        "masks": None if options.masks is None else np.ascontiguousarray(options.masks, dtype=np.uint32),
        "temperature": np.full(draws, options.temperature, dtype=np.float32),
        "top_k": np.full(draws, options.top_k, dtype=np.int32),
        "typical_p": np.full(draws, options.typical_p, dtype=np.float32),
        "top_p": np.full(draws, options.top_p, dtype=np.float32),
        "min_p": np.full(draws, options.min_p, dtype=np.float32),
        "uniforms": np.asarray(uniforms, dtype=np.float64),
        "chosen": np.full(draws, -7, dtype=np.int64),
    }
    pointers = {name: None if array is None else array.ctypes.data for name, array in arrays.items()}
    batch = _Sampling(rows=draws, vocab_size=vocab, stride=logits.strides[0] // 4, **pointers)
    program = _Program(0, 0, 1, vocab, None, None)
    runtime = library.pio_runtime_new(ctypes.addressof(program), isa.index, 2)
    assert runtime
    status = library.pio_runtime_sample(runtime, logits.ctypes.data, ctypes.addressof(batch))
    library.pio_runtime_free(runtime)
    assert status == 0
    return arrays["chosen"]


def candidates(row, options, allowed=None):
    """Ids, ascending, and weights of what may be drawn from logits (V,), in float64 by sorting; () if nothing may."""
    x = row.astype(np.float64)
    if np.isnan(x).any():
        return np.empty(0, int), np.empty(0)
    if allowed is not None:
        x = np.where(allowed, x, -np.inf)
    if not np.isfinite(x.max()):
        return np.empty(0, int), np.empty(0)
    if options.temperature == 0.0:
        return np.array([x.argmax()]), np.ones(1)
    kept = x > -np.inf
    if 0 < options.top_k < x.size:
        kept &= x >= np.sort(x)[-options.top_k]
    ids = np.flatnonzero(kept)
    weights = np.exp((x[ids] - x.max()) / np.float64(np.float32(options.temperature)))
    typical_p, top_p = float(np.float32(options.typical_p)), float(np.float32(options.top_p))
    if typical_p < 1.0:
        p = weights / weights.sum()
        surprise = -np.log(np.maximum(p, 1e-300))
        deviation = np.abs(surprise - (p * surprise).sum())
        order = np.argsort(deviation, kind="stable")
        count = int((np.cumsum(p[order]) < typical_p).sum()) + 1
        inside = deviation <= deviation[order[min(count, p.size) - 1]] * (1 + 1e-5)
        ids, weights = ids[inside], weights[inside]
    if top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        count = int((np.cumsum(weights[order]) < top_p * weights.sum()).sum()) + 1
        inside = np.sort(order[:count])
        ids, weights = ids[inside], weights[inside]
    if options.min_p > 0.0:
        inside = weights >= np.float64(np.float32(options.min_p)) * weights.max()
        ids, weights = ids[inside], weights[inside]
    return ids, weights


def assert_drawn(chosen, row, uniform, options, allowed=None):
    """``chosen`` is what the share ``uniform`` points at, or a neighbour whose edge it is within rounding of."""
    ids, weights = candidates(row, options, allowed)
    if not ids.size:
        assert chosen == -1
        return
    cumulative = np.cumsum(weights) / weights.sum()
    expected = ids[min(np.searchsorted(cumulative, uniform, side="right"), ids.size - 1)]
    if chosen == expected:
        return
    place = np.searchsorted(ids, chosen)
    assert chosen in ids, f"{chosen} is filtered, {expected} expected"
    lower = cumulative[place] - weights[place] / weights.sum()
    assert lower - 1e-6 <= uniform <= cumulative[place] + 1e-6, f"{chosen} drawn, {expected} expected"


def random_logits(rng, rows, vocab):
    return (rng.standard_normal((rows, vocab)) * rng.uniform(0.5, 6, (rows, 1))).astype(np.float32)


OPTIONS = {
    "greedy": Options(temperature=0.0),
    "plain": Options(),
    "warm": Options(temperature=1.7),
    "cold": Options(temperature=0.05),
    "top_k": Options(top_k=7),
    "top_k of many": Options(top_k=300, temperature=0.8),
    "top_k of all": Options(top_k=100_000),
    "top_p": Options(top_p=0.9),
    "top_p small": Options(top_p=0.01),
    "top_p zero": Options(top_p=0.0),
    "min_p": Options(min_p=0.05),
    "min_p one": Options(min_p=1.0),
    "typical_p": Options(typical_p=0.6),
    "all": Options(temperature=0.9, top_k=50, typical_p=0.95, top_p=0.9, min_p=0.02),
}


@pytest.mark.parametrize("isa", USABLE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("name", OPTIONS)
def test_draws_follow_the_contract(isa, vocab, name):
    """Random rows: the token at the share ``uniform`` of what sorting in float64 leaves."""
    rng = np.random.default_rng(vocab)
    logits, uniforms = random_logits(rng, 24, vocab), rng.random(24)
    uniforms[:2] = 0.0, np.nextafter(1.0, 0.0)
    chosen = sample(isa, logits, uniforms, OPTIONS[name])
    for token, row, uniform in zip(chosen, logits, uniforms, strict=True):
        assert_drawn(token, row, uniform, OPTIONS[name])


@pytest.mark.parametrize("isa", USABLE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", OPTIONS)
def test_masks_forbid(isa, name):
    """Only tokens whose bit is set are drawn; bits beyond the vocabulary mean nothing."""
    rng = np.random.default_rng(5)
    vocab, options = 1003, OPTIONS[name]
    allowed = rng.random((20, vocab)) < rng.choice([0.02, 0.5], (20, 1))
    allowed[0], allowed[1] = False, True
    bits = np.ones((20, 32 * 32), dtype=bool)
    bits[:, :vocab] = allowed
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    logits, uniforms = random_logits(rng, 20, vocab), rng.random(20)
    chosen = sample(isa, logits, uniforms, Options(**(vars(options) | {"masks": masks})))
    assert chosen[0] == -1
    for token, row, uniform, mask in zip(chosen, logits, uniforms, allowed, strict=True):
        assert_drawn(token, row, uniform, options, mask)


@pytest.mark.parametrize("isa", USABLE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", OPTIONS)
def test_ties_and_forbidden_tokens(isa, name):
    """Logits of few different values, some of them -inf, with zeros of both signs."""
    rng = np.random.default_rng(6)
    logits = rng.choice(np.float32([-np.inf, -1.5, -0.0, 0.0, 2.0]), (30, 517))
    logits[:5][logits[:5] == 2.0] = -0.0  # the largest are zeros of both signs
    uniforms = rng.random(30)
    chosen = sample(isa, logits, uniforms, OPTIONS[name])
    for token, row, uniform in zip(chosen, logits, uniforms, strict=True):
        assert_drawn(token, row, uniform, OPTIONS[name])


@pytest.mark.parametrize("isa", USABLE, ids=lambda isa: isa.name)
def test_ties_at_the_edge_of_the_nucleus_go_to_lower_ids(isa):
    """Of four equals that share everything, the first two reach one half; top-k keeps all equals."""
    logits = np.full((1, 40), -30, dtype=np.float32)
    logits[0, [3, 9, 20, 39]] = 1.0
    last = np.nextafter(1.0, 0.0)
    assert sample(isa, logits, [last], Options(top_k=4, top_p=0.5)) == 9
    assert sample(isa, logits, [last], Options(top_k=1)) == 39


@pytest.mark.parametrize("isa", USABLE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", ["greedy", "plain", "top_k", "all"])
def test_rows_that_cannot_be_drawn_from_give_minus_one(isa, name):
    """A NaN of either sign anywhere, even where a mask forbids; an infinite logit; nothing finite."""
    logits = np.zeros((6, 70), dtype=np.float32)
    logits[0, 66] = np.nan
    logits[1, 3] = -np.float32(np.nan)
    logits[2, 5] = np.inf
    logits[3] = -np.inf
    logits[4, 69] = np.inf
    masks = np.full((6, 3), 0xFFFFFFFF, dtype=np.uint32)
    assert sample(isa, logits, [0.5] * 6, OPTIONS[name])[:5].tolist() == [-1] * 5
    assert sample(isa, logits, [0.5] * 6, Options(**(vars(OPTIONS[name]) | {"masks": masks})))[:5].tolist() == [-1] * 5
    masks[0, 66 // 32] = 0
    masks[4, 2] = 0
    chosen = sample(isa, logits, [0.5] * 6, Options(**(vars(OPTIONS[name]) | {"masks": masks})))
    assert chosen[0] == -1
    assert 0 <= chosen[4] < 64


@pytest.mark.parametrize("isa", USABLE, ids=lambda isa: isa.name)
def test_one_row_serves_several_draws(isa):
    """``logit_rows`` says which row each draw is made from; the logits stay as they are."""
    rng = np.random.default_rng(9)
    logits = random_logits(rng, 3, 801)
    before = logits.copy()
    rows, uniforms = [2, 0, 2, 2, 1], rng.random(5)
    chosen = sample(isa, logits, uniforms, OPTIONS["top_p"], rows)
    for token, row, uniform in zip(chosen, rows, uniforms, strict=True):
        assert_drawn(token, logits[row], uniform, OPTIONS["top_p"])
    assert np.array_equal(before, logits)


@pytest.mark.parametrize("isa", USABLE, ids=lambda isa: isa.name)
def test_tiny_temperatures_take_the_most_likely(isa):
    """Differences that overflow when divided weigh nothing."""
    logits = random_logits(np.random.default_rng(1), 4, 333)
    chosen = sample(isa, logits, [0.0, 0.3, 0.7, 0.999], Options(temperature=1e-40, top_p=0.95))
    assert chosen.tolist() == logits.argmax(axis=1).tolist()
