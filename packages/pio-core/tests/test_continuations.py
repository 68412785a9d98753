"""Several continuations of one prompt: ``n``, best of, beams."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_pio.core._beams import BeamSearch
from inference_pio.interfaces import BeamSearchParams, FinishReason, InvalidRequestError, Request


def test_continuations_share_the_prompt(make_engine, request_of, finish):
    """It is read once, and its pages are there once, however many continuations follow."""
    engine = make_engine(page_size=4)
    prompt = list(range(42))
    engine.add(request_of("a", prompt, n=6, temperature=1.0, seed=3, max_tokens=5))
    engine.step()
    engine.step()
    assert engine.executor.step_tokens == [42, 6]
    assert engine.cache.usage * 64 == 10 + 6 + 1  # each its own copy of the last page; the first one has room to grow
    finish(engine)
    assert len({tuple(output.token_ids) for output in engine.forget("a").outputs}) == 6
    assert engine.cache.usage == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 5),
    seats=st.integers(1, 4),
    pages=st.integers(12, 40),
    window=st.sampled_from([None, 5]),
    states=st.sampled_from([0, 6]),
    prompt=st.lists(st.integers(0, 96), min_size=1, max_size=18),
)
def test_continuations_are_the_same_in_any_room(
    make_engine, request_of, finish, n, seats, pages, window, states, prompt
):
    """Too few seats or pages make some wait, and change nothing."""
    texts = []
    for options in (
        {"num_pages": 200, "max_num_seqs": 8},
        {"num_pages": pages, "max_num_seqs": seats, "window": window, "states": states},
    ):
        engine = make_engine(page_size=2, max_model_len=24, max_step_tokens=9, **options)
        engine.add(request_of("a", prompt, n=n, temperature=1.0, seed=5, max_tokens=6))
        engine.add(request_of("b", [3], max_tokens=6))
        finish(engine)
        assert engine.cache.usage == 0
        texts.append([output.token_ids for output in engine.forget("a").outputs])
    assert texts[0] == texts[1]


def test_the_best_come_back(make_engine, request_of, finish):
    """The ``n`` of ``best_of`` with the highest log-probability, best first; events only at the end."""
    engine = make_engine()
    engine.add(request_of("all", [5, 9], n=6, temperature=1.0, seed=3, max_tokens=5, logprobs=0))
    engine.add(request_of("best", [5, 9], n=2, best_of=6, temperature=1.0, seed=3, max_tokens=5))
    events = []
    while engine.has_work:
        events += [event for event in engine.step() if event.request_id == "best"]
    everything = sorted(engine.forget("all").outputs, key=lambda output: -output.cumulative_logprob)
    best = engine.forget("best")
    assert [output.token_ids for output in best.outputs] == [output.token_ids for output in everything[:2]]
    assert [output.index for output in best.outputs] == [0, 1]
    assert [event.index for event in events] == [0, 1]
    assert all(event.finish_reason is FinishReason.LENGTH for event in events)


def test_some_continuations_may_end_before_others(make_engine, request_of, finish, logits_of):
    """Each on its own end token, without disturbing the rest."""
    engine = make_engine(eos=tuple(range(0, 97, 4)))
    engine.add(request_of("a", [5, 9], n=8, temperature=1.0, seed=1, max_tokens=30))
    finish(engine)
    outputs = engine.forget("a").outputs
    assert len({len(output.token_ids) for output in outputs}) > 2
    assert all(output.token_ids[-1] % 4 == 0 for output in outputs if output.finish_reason is FinishReason.STOP)
    assert engine.cache.usage == 0


def test_cancelling_ends_all_continuations(make_engine, request_of):
    """Those that run, those that wait and those that have not begun."""
    for steps in (0, 1, 2, 4):
        engine = make_engine(max_num_seqs=2, max_step_tokens=8)
        engine.add(request_of("a", list(range(12)), n=4, temperature=1.0, max_tokens=9))
        for _ in range(steps):
            engine.step()
        engine.abort("a")
        assert all(output.finish_reason is FinishReason.ABORT for output in engine.forget("a").outputs)
        assert not engine.has_work
        assert engine.cache.usage == 0


def beams_of(request_id, prompt, **params):
    return Request(request_id=request_id, prompt_token_ids=tuple(prompt), params=BeamSearchParams(**params))


def searched(prompt, params, logits_of, end_ids=()):
    """The search without cache, batches and scheduling."""
    search = BeamSearch(params, end_ids)
    while not search.done:
        candidates = []
        for beam in search.live:
            logits = logits_of([*prompt, *beam.token_ids]).astype("float64")
            logprobs = logits - logits.max()
            logprobs -= math.log(sum(math.exp(value) for value in logprobs))
            best = sorted(range(len(logprobs)), key=lambda token_id: (-logprobs[token_id], token_id))
            candidates.append([(token_id, logprobs[token_id]) for token_id in best[: search.num_candidates]])
        search.advance(candidates)
    return search.results()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 4),
    pages=st.integers(36, 60),
    window=st.sampled_from([None, 3]),
    states=st.sampled_from([0, 9]),
    company=st.integers(0, 5),
    prompt=st.lists(st.integers(0, 96), min_size=1, max_size=9),
)
def test_beams_in_any_company(
    make_engine, request_of, finish, logits_of, width, pages, window, states, company, prompt
):
    """The same texts and log-probabilities as a search by hand, while others run and pages are short."""
    params = BeamSearchParams(beam_width=width, max_tokens=6)
    wanted = searched(prompt, params, logits_of, end_ids={3, 50})
    engine = make_engine(
        num_pages=pages, page_size=2, max_model_len=16, max_num_seqs=4, window=window, states=states, eos=(3, 50)
    )
    for index in range(company):
        engine.add(request_of(str(index), [index], max_tokens=9))
    engine.add(beams_of("beams", prompt, beam_width=width, max_tokens=6))
    finish(engine)
    output = engine.forget("beams")
    assert [tuple(one.token_ids) for one in output.outputs] == [one.token_ids for one in wanted]
    assert [one.cumulative_logprob for one in output.outputs] == pytest.approx(
        [one.cumulative_logprob for one in wanted], abs=1e-5
    )
    assert engine.cache.usage == 0


def test_beams_that_are_cancelled(make_engine):
    """What lives is what comes back, and the pages are free."""
    engine = make_engine()
    engine.add(beams_of("a", [1, 2, 3], beam_width=3, max_tokens=9))
    for _ in range(4):
        engine.step()
    engine.abort("a")
    output = engine.forget("a")
    assert [len(one.token_ids) for one in output.outputs] == [4, 4, 4]
    assert {one.finish_reason for one in output.outputs} == {FinishReason.ABORT}
    assert engine.cache.usage == 0
    assert not engine.has_work


def test_more_beams_than_seats_are_refused(make_engine):
    """They live side by side or not at all."""
    with pytest.raises(InvalidRequestError, match="beam_width 9 is above the 8 sequences"):
        make_engine().add(beams_of("a", [1], beam_width=9))
