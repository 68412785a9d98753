"""Speculation in the engine: the same tokens with and without, whatever is proposed."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_pio.core._draft_model import DraftModelProposer
from inference_pio.core._drafting import Drafting
from inference_pio.core._proposers import NgramProposer
from inference_pio.core._speculation import SpeculationControl


class Oracle:
    """Proposes what is right with probability ``skill``, by the reference, and something else otherwise."""

    name = "oracle"

    def __init__(self, expected, right):
        self._expected = expected
        self._right = right
        self.forgotten = 0

    def propose(self, requests):
        proposals = []
        for request in requests:
            drafts = self._expected(list(request.tokens), request.num_draft)
            wrong = [self._right(len(request.tokens) + place) for place in range(len(drafts))]
            proposals.append([token if right else (token + 1) % 97 for token, right in zip(drafts, wrong, strict=True)])
        return proposals

    def forget(self, key):  # noqa: ARG002 - the protocol's
        self.forgotten += 1


class Always(SpeculationControl):
    """Drafts as many as may be, whether it pays or not."""

    def __init__(self, count):
        super().__init__(count)
        self._count = count

    def draft_lengths(self, keys, *, other_rows):  # noqa: ARG002 - the control's
        return [self._count] * len(keys)


def drafting(proposer, count):
    return Drafting(proposer, Always(count), max_step_tokens=64)


def test_right_drafts_save_steps(make_engine, request_of, expected, finish):
    """k drafts and one more token per step; events and metrics count them all."""
    oracle = Oracle(expected, lambda position: position >= 0)
    engine = make_engine(drafting=drafting(oracle, 3))
    engine.add(request_of("a", [5, 9, 2], max_tokens=13))
    finish(engine)
    assert engine.forget("a").outputs[0].token_ids == expected([5, 9, 2], 13)
    assert engine.executor.step_tokens == [3, 4, 4, 4]
    metrics = engine.metrics
    assert (metrics.drafts.total, metrics.draft_tokens.total, metrics.accepted_tokens.total) == (3, 9, 9)
    assert metrics.accepted_per_position.values == {"0": 3, "1": 3, "2": 3}
    assert metrics.generation_tokens.total == 13
    assert oracle.forgotten == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wrong_drafts_change_nothing(make_engine, request_of, expected, finish, data):
    """Greedy or sampled, with penalties, end tokens, windows, prefix hits, preemption: the tokens stay the same."""
    hits = data.draw(st.lists(st.booleans(), min_size=7, max_size=7), "right")
    options = {
        "page_size": data.draw(st.sampled_from([2, 4]), "page size"),
        "num_pages": data.draw(st.integers(20, 60), "pages"),
        "window": data.draw(st.sampled_from([None, 5]), "window"),
        "max_num_seqs": data.draw(st.integers(1, 4), "sequences"),
        "max_step_tokens": data.draw(st.integers(1, 30), "tokens"),
        "max_model_len": 30,
        "eos": (7, 70),
    }
    params = data.draw(
        st.sampled_from(
            [
                {"temperature": 0.0},
                {"temperature": 1.0, "seed": 3},
                {"temperature": 0.7, "top_p": 0.8, "seed": 3, "presence_penalty": 1.5, "repetition_penalty": 1.3},
                {"temperature": 1.0, "seed": 4, "n": 3, "logprobs": 2, "min_tokens": 4},
            ]
        ),
        "params",
    )
    outputs = []
    for count in (0, data.draw(st.integers(1, 6), "drafts")):
        oracle = Oracle(expected, lambda position: hits[position % 7])
        engine = make_engine(**options, drafting=drafting(oracle, count) if count else None)
        for index in range(3):
            engine.add(request_of(str(index), [4, 4, index], max_tokens=15, **params))
        finish(engine)
        outputs.append([engine.forget(str(index)).outputs for index in range(3)])
        assert engine.cache.usage == 0
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_model_that_is_the_model(make_engine, request_of, expected, finish, temperature):
    """Every draft is right, sampled ones too, since both draw with the same numbers."""
    draft = make_engine(num_pages=128).executor
    proposer = DraftModelProposer(draft, vocab_size=97, target_vocab_size=97, max_length=256)
    outputs = []
    for proposing in (None, drafting(proposer, 4)):
        engine = make_engine(drafting=proposing)
        for index in range(3):
            engine.add(request_of(str(index), [8, index], max_tokens=16, temperature=temperature, seed=index))
        finish(engine)
        outputs.append([engine.forget(str(index)).outputs[0].token_ids for index in range(3)])
    assert outputs[0] == outputs[1]
    assert engine.metrics.draft_tokens.total == engine.metrics.accepted_tokens.total > 0
    assert proposer.cache.usage == 0


def test_a_loop_is_found_by_lookup(make_engine, request_of, finish):
    """Prompt lookup with the real control: the text is the same, and it stops trying where nothing repeats."""
    outputs = []
    for proposing in (None, Drafting(NgramProposer(), SpeculationControl(4), max_step_tokens=64)):
        engine = make_engine(drafting=proposing)
        engine.add(request_of("a", [1, 2, 3, 4] * 6, max_tokens=40, temperature=1.0, seed=1))
        finish(engine)
        outputs.append(engine.forget("a").outputs[0].token_ids)
    assert outputs[0] == outputs[1]
