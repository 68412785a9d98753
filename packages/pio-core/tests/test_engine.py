"""The engine against an executor that sees every mistake of bookkeeping."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_pio.interfaces import (
    DoesNotFitError,
    FinishReason,
    InvalidRequestError,
    PromptTooLongError,
)


def test_greedy_equals_the_reference(make_engine, request_of, expected, finish):
    """One request gives exactly what reading the whole history each time would give."""
    engine = make_engine()
    engine.add(request_of("a", [5, 9, 2], max_tokens=20))
    finish(engine)
    output = engine.forget("a")
    assert output.outputs[0].token_ids == expected([5, 9, 2], 20)
    assert output.outputs[0].finish_reason is FinishReason.LENGTH
    assert output.finished
    assert engine.cache.usage == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=30), min_size=1, max_size=8),
    max_num_seqs=st.integers(1, 4),
    max_step_tokens=st.integers(1, 40),
    page_size=st.sampled_from([1, 3, 16]),
    lengths=st.lists(st.integers(1, 12), min_size=8, max_size=8),
)
def test_any_batching_equals_alone(
    make_engine, request_of, expected, finish, prompts, max_num_seqs, max_step_tokens, page_size, lengths
):
    """Whatever runs beside it, however its prompt is cut, a request's tokens are the same, and no page is lost."""
    engine = make_engine(
        num_pages=-(-200 // page_size),
        page_size=page_size,
        max_model_len=100,
        max_num_seqs=max_num_seqs,
        max_step_tokens=max_step_tokens,
    )
    for index, prompt in enumerate(prompts):
        engine.add(request_of(str(index), prompt, max_tokens=lengths[index]))
    finish(engine)
    for index, prompt in enumerate(prompts):
        assert engine.forget(str(index)).outputs[0].token_ids == expected(prompt, lengths[index])
    assert engine.cache.usage == 0
    assert max(engine.executor.step_tokens) <= max(max_step_tokens, max_num_seqs)


def test_prompt_chunks_do_not_stall_decoding(make_engine, request_of, finish):
    """While a long prompt is read in chunks, a running request gets a token in every step."""
    engine = make_engine(max_step_tokens=8)
    engine.add(request_of("short", [1], max_tokens=12))
    engine.step()
    engine.add(request_of("long", list(range(60)), max_tokens=2))
    for _ in range(8):
        assert engine.step()[0].request_id == "short"
    finish(engine)
    assert max(engine.executor.step_tokens) == 8


def test_logits_only_for_sampled_rows(make_engine, request_of, finish):
    """A prompt costs one row of logits, not one per token."""
    engine = make_engine(max_step_tokens=16)
    engine.add(request_of("a", list(range(50)), max_tokens=1))
    finish(engine)
    assert engine.executor.step_tokens == [16, 16, 16, 2]
    assert engine.executor.logit_rows == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "params, largest",
    [
        ({}, 1),
        ({"temperature": 1.0, "top_k": 20}, 20),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.5, "n": 2}, 3),
        ({"temperature": 1.0, "top_p": 0.5}, 0),
        ({"logprobs": 0}, 0),
        ({"temperature": 1.0, "top_k": 3, "n": 1, "best_of": 2}, 0),
        ({"repetition_penalty": 1.1}, 0),
        ({"presence_penalty": 0.1}, 0),
        ({"logit_bias": {5: 1.0}}, 0),
    ],
    ids=str,
)
def test_no_more_logits_are_asked_for_than_count(make_engine, request_of, finish, params, largest):
    """One where decoding is greedy, as many as top-k keeps; all where another logit may rise, or is reported."""
    engine = make_engine()
    engine.add(request_of("a", [5, 9, 2], max_tokens=4, **params))
    finish(engine)
    assert {count for step in engine.executor.largest_wanted for count in step} == {largest}


def test_prompts_that_are_scored_need_all_their_logits(make_engine, request_of, finish):
    """Those of a prompt's positions are reported; of what is chosen after it only the largest counts."""
    engine = make_engine(max_step_tokens=16)
    engine.add(request_of("a", [3, 1, 4, 1], max_tokens=2, prompt_logprobs=1))
    engine.add(request_of("b", [2, 7], max_tokens=1))
    finish(engine)
    assert engine.executor.largest_wanted == [[0, 0, 0, 1, 1], [1]]


def test_prompt_logprobs_cover_every_position(make_engine, request_of, finish):
    """None first, then one entry per position that holds the actual token; chunking changes nothing."""
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    outputs = []
    for rows in (128, 3):
        engine = make_engine(max_logit_rows=rows)
        engine.add(request_of("a", prompt, max_tokens=2, prompt_logprobs=2, logprobs=0))
        finish(engine)
        outputs.append(engine.forget("a"))
        assert max(engine.executor.logit_rows) <= max(rows, 1)
    whole, chunked = outputs
    assert whole.prompt_logprobs == chunked.prompt_logprobs
    assert whole.prompt_logprobs[0] is None
    assert len(whole.prompt_logprobs) == len(prompt)
    for token_id, entry in zip(prompt[1:], whole.prompt_logprobs[1:], strict=True):
        assert token_id in entry
        assert sorted(candidate.rank for candidate in entry.values())[:2] == [1, 2]
    (chosen,) = whole.outputs[0].logprobs[0].values()
    assert chosen.rank == 1
    total = sum(
        entry[token].logprob for token, entry in zip(whole.outputs[0].token_ids, whole.outputs[0].logprobs, strict=True)
    )
    assert whole.outputs[0].cumulative_logprob == pytest.approx(total)


def test_n_continuations_differ_and_repeat(make_engine, request_of, finish):
    """``n`` continuations of one seed are n different draws, the same on every run and in any company."""
    runs = []
    for company in (False, True):
        engine = make_engine(max_num_seqs=3)
        if company:
            engine.add(request_of("other", [8, 8], max_tokens=9, temperature=1.0, seed=1))
        engine.add(request_of("a", [5, 9, 2], max_tokens=8, temperature=1.0, seed=7, n=3))
        finish(engine)
        runs.append([output.token_ids for output in engine.forget("a").outputs])
    assert runs[0] == runs[1]
    assert len({tuple(tokens) for tokens in runs[0]}) == 3


def test_end_token_ends(make_engine, request_of, expected, finish):
    """An end token of the model stops with no stop reason; ``ignore_eos`` goes on; ``min_tokens`` holds it back."""
    reference = expected([5, 9, 2], 12)
    eos = reference[4]
    first = reference.index(eos)
    engine = make_engine(eos=(eos,))
    engine.add(request_of("stops", [5, 9, 2], max_tokens=12))
    engine.add(request_of("goes-on", [5, 9, 2], max_tokens=12, ignore_eos=True))
    engine.add(request_of("held-back", [5, 9, 2], max_tokens=12, min_tokens=12))
    finish(engine)
    stopped = engine.forget("stops").outputs[0]
    assert stopped.token_ids == reference[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, None)
    assert engine.forget("goes-on").outputs[0].token_ids == reference
    assert eos not in engine.forget("held-back").outputs[0].token_ids


def test_stop_token_ends_with_its_id(make_engine, request_of, expected, finish):
    """A stop token of the request is the stop reason."""
    reference = expected([5, 9, 2], 6)
    engine = make_engine()
    engine.add(request_of("a", [5, 9, 2], max_tokens=12, stop_token_ids=[reference[3]]))
    finish(engine)
    output = engine.forget("a").outputs[0]
    assert output.token_ids == reference[: reference.index(reference[3]) + 1]
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, reference[3])


def test_max_tokens_is_cut_to_the_context(make_engine, request_of, finish):
    """No bound, or one beyond the context, generates up to the end of the context."""
    engine = make_engine(max_model_len=10)
    engine.add(request_of("none", [1, 2, 3], max_tokens=None))
    engine.add(request_of("many", [1, 2, 3], max_tokens=1000))
    finish(engine)
    assert [len(engine.forget(name).outputs[0].token_ids) for name in ("none", "many")] == [7, 7]


def test_abort_gives_pages_back_at_any_moment(make_engine, request_of, finish):
    """Waiting, half-read, decoding or finished: aborting frees everything and says so."""
    for steps in (0, 1, 3, 40):
        engine = make_engine(max_step_tokens=4, max_num_seqs=1)
        engine.add(request_of("a", list(range(9)), max_tokens=5, n=2))
        for _ in range(steps):
            if engine.has_work:
                engine.step()
        engine.abort("a")
        output = engine.forget("a")
        assert output.finished
        assert all(one.finish_reason in {FinishReason.ABORT, FinishReason.LENGTH} for one in output.outputs)
        assert engine.cache.usage == 0
        assert not engine.has_work


def test_waits_for_pages_and_then_runs(make_engine, request_of, expected, finish):
    """More requests than the cache holds run one after another, in their order."""
    engine = make_engine(num_pages=4, page_size=4, max_num_seqs=8)
    for name in "abc":
        engine.add(request_of(name, [1, 2, 3, ord(name) % 90], max_tokens=8))
    engine.step()
    assert [one.state.request.request_id for one in engine.scheduler.running] == ["a", "b"]
    finish(engine)
    for name in "abc":
        assert engine.forget(name).outputs[0].token_ids == expected([1, 2, 3, ord(name) % 90], 8)


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ([], {}, InvalidRequestError, "no tokens"),
        ([1, 97], {}, InvalidRequestError, "token id 97 is not in the vocabulary of 97"),
        ([-1], {}, InvalidRequestError, "token id -1"),
        ([1] * 60, {}, PromptTooLongError, "60 tokens, and the context holds 60"),
        ([1], {"logit_bias": {97: 1.0}}, InvalidRequestError, "token id 97 in logit_bias"),
        ([1], {"stop_token_ids": [500]}, InvalidRequestError, "token id 500"),
        ([1], {"stop": ["x"]}, InvalidRequestError, "need a tokenizer"),
        ([1] * 50, {"max_tokens": 10}, DoesNotFitError, "needs 60 tokens of cache, and the cache holds 32"),
    ],
)
def test_bad_requests_are_refused_at_once(make_engine, request_of, prompt, params, error, message):
    """A request that can never be served raises when added and leaves the engine as it was."""
    engine = make_engine(num_pages=8, page_size=4, max_model_len=60)
    with pytest.raises(error, match=message):
        engine.add(request_of("a", prompt, **params))
    assert not engine.has_work
    engine.add(request_of("a", [1], max_tokens=1))


def test_duplicate_ids_are_refused(make_engine, request_of):
    """Two running requests cannot share an id."""
    engine = make_engine()
    engine.add(request_of("a", [1]))
    with pytest.raises(InvalidRequestError, match="'a' is running already"):
        engine.add(request_of("a", [2]))


def test_metrics_add_up(make_engine, request_of, finish):
    """Times are there once the request has finished, and none is negative."""
    engine = make_engine()
    engine.add(request_of("a", [1, 2], max_tokens=4))
    assert engine.output("a").metrics is None
    finish(engine)
    metrics = engine.forget("a").metrics
    assert metrics.ttft_s == pytest.approx(metrics.queue_s + metrics.prefill_s)
    assert min(metrics.queue_s, metrics.prefill_s, metrics.decode_s) >= 0


def test_steps_without_work_and_early_forgetting_are_mistakes(make_engine, request_of):
    """Misuse by the caller raises ``ValueError``."""
    engine = make_engine()
    with pytest.raises(ValueError, match="without work"):
        engine.step()
    engine.add(request_of("a", [1]))
    with pytest.raises(ValueError, match="not finished"):
        engine.forget("a")


def test_a_model_that_cannot_chunk_reads_prompts_whole(make_engine, request_of, expected, finish):
    """Without chunked prefill each prompt is read in one step, whatever the budget, and tokens are the same."""
    engine = make_engine(max_step_tokens=8, max_logit_rows=2, chunked_prefill=False)
    prompts = {"a": list(range(20)), "b": [4, 2], "c": list(range(30, 42))}
    for name, prompt in prompts.items():
        engine.add(request_of(name, prompt, max_tokens=4, prompt_logprobs=0 if name == "c" else None))
    finish(engine)
    for name, prompt in prompts.items():
        output = engine.forget(name)
        assert output.outputs[0].token_ids == expected(prompt, 4)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == 12
    assert max(engine.executor.step_tokens) == 20


def test_logprobs_need_the_capability(make_engine, request_of):
    """A plugin that does not declare log-probabilities is not asked for them."""
    engine = make_engine(logprobs=False)
    for params in ({"logprobs": 1}, {"prompt_logprobs": 0}):
        with pytest.raises(InvalidRequestError, match="capability 'logprobs'"):
            engine.add(request_of("a", [1], **params))


def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(make_engine, request_of, expected, finish):
    """The error is raised, and comes with the event of each request of the step; those that waited are served."""
    engine = make_engine(max_num_seqs=2)
    for name in "abc":
        engine.add(request_of(name, [ord(name) % 90], max_tokens=4))
    engine.executor.fail_at = 1
    engine.step()
    with pytest.raises(RuntimeError, match="planted failure"):
        engine.step()
    events = engine.step()
    failed = [event for event in events if event.error is not None]
    assert {event.request_id for event in failed} == {"a", "b"}
    assert all(str(event.error) == "the step failed: RuntimeError: planted failure" for event in failed)
    finish(engine)
    assert engine.forget("a").error is failed[0].error
    assert engine.forget("b").outputs[0].finish_reason is FinishReason.ERROR
    assert engine.forget("c").outputs[0].token_ids == expected([ord("c") % 90], 4)
    assert engine.cache.usage == 0


def test_numbers_that_are_none_fail_one_request(make_engine, request_of, expected, finish):
    """Logits that are not numbers end the request that they belong to, and no other."""
    engine = make_engine()
    engine.executor.nan_for = {13}
    engine.add(request_of("bad", [13, 2], max_tokens=4, n=2))
    engine.add(request_of("good", [5, 2], max_tokens=4))
    finish(engine)
    bad = engine.forget("bad")
    assert [output.finish_reason for output in bad.outputs] == [FinishReason.ERROR] * 2
    assert "logits that are no numbers" in str(bad.error)
    assert engine.forget("good").outputs[0].token_ids == expected([5, 2], 4)
    assert engine.cache.usage == 0


def test_every_event_says_where_the_time_went(make_engine, request_of):
    """Queue and prefill stay as they are after the first token; decoding adds up."""
    engine = make_engine()
    engine.add(request_of("a", list(range(9)), max_tokens=3))
    events = []
    while engine.has_work:
        events += engine.step()
    assert len({(event.metrics.queue_s, event.metrics.prefill_s, event.metrics.ttft_s) for event in events}) == 1
    decode = [event.metrics.decode_s for event in events]
    assert decode[0] == 0.0
    assert decode == sorted(decode)
    assert engine.forget("a").metrics == events[-1].metrics


def test_a_deadline_ends_a_request_with_what_it_has(make_engine, request_of, finish, monkeypatch):
    """Running or waiting: finish reason ``timeout``, an event, and its pages are free."""
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    engine = make_engine(max_num_seqs=1)
    engine.add(request_of("runs", [1], max_tokens=50, timeout_s=5.0))
    engine.add(request_of("waits", [2], max_tokens=50, timeout_s=5.0))
    engine.add(request_of("patient", [3], max_tokens=2))
    for _ in range(3):
        engine.step()
    clock[0] += 6.0
    events = engine.step()
    assert {event.request_id: event.finish_reason for event in events if event.token_id is None} == {
        "runs": FinishReason.TIMEOUT,
        "waits": FinishReason.TIMEOUT,
    }
    finish(engine)
    assert len(engine.forget("runs").outputs[0].token_ids) == 3
    assert engine.forget("waits").outputs[0].token_ids == []
    assert engine.forget("patient").outputs[0].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_deadline_lies_in_the_future(make_engine, request_of, timeout):
    """Anything else is refused."""
    with pytest.raises(InvalidRequestError, match="timeout_s must be above 0"):
        make_engine().add(request_of("a", [1], timeout_s=timeout))


def test_the_metrics_count(make_engine, request_of, finish):
    """Tokens read and chosen, requests by reason, times by histogram, the prefix cache."""
    engine = make_engine(page_size=4)
    engine.add(request_of("a", list(range(20)), max_tokens=6))
    finish(engine)
    engine.add(request_of("b", list(range(20)), max_tokens=3, n=2))
    finish(engine)
    engine.add(request_of("c", [1], max_tokens=3))
    engine.abort("c")
    metrics = engine.metrics
    assert metrics.prompt_tokens.total == 20 + 4  # the second prompt was found, but for its last page
    assert metrics.generation_tokens.total == 6 + 2 * 3
    assert metrics.requests_finished.values == {"length": 2, "abort": 1}
    assert metrics.prefix_hits.total == 16
    assert metrics.time_to_first_token.count == 2
    assert metrics.inter_token_latency.count == 5 + 2 * 2
    assert metrics.queue_time.count == 2
    assert metrics.step_tokens.sum == sum(engine.executor.step_tokens)
    assert len({metric.name for metric in metrics}) == len(list(metrics))
    assert all(metric.name.startswith("pio:") and metric.help for metric in metrics)
