"""What sampling remembers: draws that depend on nothing else, penalties and prohibitions against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.core._sampler_state import SamplerState
from inference_pio.interfaces import SamplingParams

VOCAB = 60


def state_of(prompt=(), text=(), *, index=0, end_ids=(), bad_words=(), **params):
    state = SamplerState(SamplingParams(**params), list(prompt), index=index, end_ids=end_ids, bad_words=bad_words)
    for token_id in text:
        state.record(token_id)
    return state


def as_dict(edits):
    if edits is None:
        return {}
    ids, values = edits
    assert len(set(ids.tolist())) == ids.size, "a token comes twice"
    assert ids.dtype == np.int64
    assert values.dtype == np.float32
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, -(2**63)])
def test_uniforms_are_the_stream_of_seed_and_index(seed):
    """Token t is drawn with number t of PCG64([seed % 2**64, index]), over many blocks."""
    state = state_of(seed=seed, index=3)
    wanted = np.random.Generator(np.random.PCG64([seed % 2**64, 3])).random(200).tolist()
    drawn = []
    for _ in range(200):
        drawn.append(state.uniform())
        state.record(1)
    assert drawn == wanted


def test_looking_ahead_changes_no_draw():
    """However far and in whatever order speculation looks ahead, each token has its own number."""
    wanted = np.random.Generator(np.random.PCG64([5, 0])).random(400).tolist()
    rng = np.random.default_rng(0)
    state = state_of(seed=5)
    for position in range(250):
        for ahead in rng.integers(0, 100, size=int(rng.integers(0, 4))).tolist():
            assert state.uniform(ahead) == wanted[position + ahead]
        state.record(0)


def test_streams_differ_and_missing_seeds_are_drawn():
    """Another seed or index is another stream; without a seed no two states agree, and each agrees with itself."""
    firsts = [state_of(seed=1).uniform(), state_of(seed=1, index=1).uniform(), state_of(seed=2).uniform()]
    unseeded = [state_of(), state_of()]
    firsts += [state.uniform() for state in unseeded]
    assert len(set(firsts)) == len(firsts)
    assert unseeded[0].uniform() == firsts[3]


def test_fork_keeps_the_past_and_draws_its_own_future():
    """A fork counts what was recorded, goes its own way, and draws as if its index had run from the start."""
    state = state_of(
        [1], [5, 5], seed=9, presence_penalty=1.0, repetition_penalty=2.0, bad_words=[(5, 8)], logit_bias={3: 1.0}
    )
    state.uniform(40)
    fork = state.fork(4)
    assert fork.uniform() == np.random.Generator(np.random.PCG64([9, 4])).random(3)[2]
    assert state.uniform() == np.random.Generator(np.random.PCG64([9, 0])).random(3)[2]
    fork.record(7)
    assert as_dict(fork.penalties()) == {5: -1.0, 7: -1.0}
    assert as_dict(state.penalties()) == {5: -1.0, 8: -np.inf}
    assert sorted(fork.repeated().tolist()) == [1, 5, 7]
    assert sorted(state.repeated().tolist()) == [1, 5]
    assert as_dict(fork.bias()) == {3: 1.0}


def test_plain_parameters_edit_nothing():
    """Without penalties, bias and prohibitions there is nothing to do, and the state says so."""
    state = state_of([1, 2, 3], [4, 5], end_ids=[2])
    assert not state.edits_logits
    assert (state.bias(), state.repeated(), state.penalties()) == (None, None, None)


@pytest.mark.parametrize(("top_k", "stored"), [(-1, 0), (0, 0), (5, 5), (2**31, 2**31 - 1)])
def test_settings_fit_the_arrays(top_k, stored):
    """Either spelling of "all" is 0, and the largest top-k fits int32."""
    assert state_of(top_k=top_k, temperature=0.5, top_p=0.9).settings == (0.5, stored, 1.0, 0.9, 0.0)


@pytest.mark.parametrize("ahead", [(), (4,), (4, 9, 9, 30)])
def test_repetition_concerns_prompt_and_text(ahead):
    """Distinct tokens of prompt, text and assumed drafts, as transformers' processor penalises them."""
    torch = pytest.importorskip("torch", reason="the oracle runs on torch")
    process = pytest.importorskip("transformers.generation.logits_process", reason="the oracle is transformers")
    prompt, text = [3, 17, 17], [40, 3, 41, *range(20, 50)]
    state = state_of(prompt, text, repetition_penalty=1.7)
    ids = state.repeated(ahead)
    logits = np.random.default_rng(1).normal(size=VOCAB).astype(np.float32)
    tokens = torch.tensor([[*prompt, *text, *ahead]])
    oracle = process.RepetitionPenaltyLogitsProcessor(1.7)(tokens, torch.from_numpy(logits.copy())[None])[0].numpy()
    assert len(set(ids.tolist())) == ids.size
    assert sorted(ids.tolist()) == np.flatnonzero(oracle != logits).tolist()


@pytest.mark.parametrize("ahead", [(), (5,), (5, 11, 11)])
def test_presence_and_frequency_look_at_the_text_only(ahead):
    """The text's tokens lose presence once and frequency per occurrence; the prompt's lose nothing."""
    state = state_of([1, 2], [5, 5, 9], presence_penalty=0.5, frequency_penalty=0.25)
    text = [5, 5, 9, *ahead]
    wanted = {token_id: -(0.5 + 0.25 * text.count(token_id)) for token_id in set(text)}
    assert as_dict(state.penalties(ahead)) == wanted
    assert as_dict(state.penalties()) == {5: -1.0, 9: -0.75}, "looking ahead recorded something"


def test_counts_grow_over_a_long_text():
    """500 tokens, counted one by one, equal a count of the whole."""
    text = np.random.default_rng(2).integers(0, 200, size=500).tolist()
    state = state_of([], text, frequency_penalty=0.5)
    assert as_dict(state.penalties()) == {token_id: -0.5 * text.count(token_id) for token_id in set(text)}


def test_end_tokens_wait_for_min_tokens():
    """Below ``min_tokens`` end tokens are forbidden, assumed drafts counted; from there on they are not."""
    state = state_of([1], [4], end_ids=[2, 3], min_tokens=3)
    assert as_dict(state.penalties()) == {2: -np.inf, 3: -np.inf}
    assert as_dict(state.penalties((4,))) == {2: -np.inf, 3: -np.inf}
    assert state.penalties((4, 4)) is None
    state.record(4)
    state.record(4)
    assert state.penalties() is None
    assert state_of(end_ids=[2]).penalties() is None


def test_prohibition_wins_over_penalty():
    """A token that is both penalised and forbidden comes once, with ``-inf``."""
    state = state_of([], [2, 6, 9], end_ids=[2], min_tokens=9, bad_words=[(6,), (9, 9)], frequency_penalty=-1.0)
    assert as_dict(state.penalties()) == {2: -np.inf, 6: -np.inf, 9: -np.inf}
    assert as_dict(state.penalties((5,))) == {2: -np.inf, 6: -np.inf, 5: 1.0, 9: 1.0}


def test_bad_words_equal_transformers():
    """Over random texts exactly the tokens are forbidden that transformers forbids, drafts included."""
    torch = pytest.importorskip("torch", reason="the oracle runs on torch")
    process = pytest.importorskip("transformers.generation.logits_process", reason="the oracle is transformers")
    rng = np.random.default_rng(4)
    words = [tuple(rng.integers(0, 4, size=int(rng.integers(1, 5))).tolist()) for _ in range(6)] + [(7,), (7, 8)]
    oracle = process.NoBadWordsLogitsProcessor([list(word) for word in words])
    seen = set()
    for _ in range(200):
        text = rng.integers(0, 4, size=int(rng.integers(1, 8))).tolist()
        cut = int(rng.integers(0, len(text) + 1))
        state = state_of([0, 1, 2, 3], text[:cut], bad_words=words)
        forbidden = {key for key, value in as_dict(state.penalties(tuple(text[cut:]))).items() if value == -np.inf}
        scores = oracle(torch.tensor([text]), torch.zeros(1, VOCAB))[0]
        assert forbidden == set(torch.nonzero(torch.isinf(scores))[:, 0].tolist())
        seen |= forbidden
    assert len(seen) > 3, "the random texts met few bad words"


def test_bad_words_begin_in_the_text():
    """The prompt's end does not count as the beginning of a bad word."""
    state = state_of([5], [], bad_words=[(5, 6)])
    assert state.penalties() is None
    assert as_dict(state.penalties((5,))) == {6: -np.inf}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"index": -1}, "index must not be negative, got -1"), ({"bad_words": [(1,), ()]}, "at least one token")],
)
def test_a_callers_mistakes_are_errors(arguments, message):
    """A negative stream and an empty bad word are refused."""
    with pytest.raises(ValueError, match=message):
        state_of(**arguments)


def test_fork_refuses_a_negative_index():
    """A fork has a stream of its own, from 0 up."""
    with pytest.raises(ValueError, match="index must not be negative, got -2"):
        state_of().fork(-2)
