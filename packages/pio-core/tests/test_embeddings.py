"""Embeddings in the engine: every position's hidden state counts once, whatever else happens."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_pio.core import AsyncEngine, Drafting, NgramProposer, SpeculationControl
from inference_pio.core._pooling import Pool
from inference_pio.interfaces import (
    DoesNotFitError,
    EngineError,
    FinishReason,
    PoolingParams,
    PromptTooLongError,
    Request,
    UnsupportedError,
)


def tokens(count, *, seed):
    return np.random.default_rng(seed).integers(0, 97, count).tolist()


@pytest.fixture
def embedding_of():
    """A request to embed."""

    def make(request_id, prompt, *, timeout_s=None, salt="", priority=0, **params):
        return Request(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            params=PoolingParams(**params),
            timeout_s=timeout_s,
            cache_salt=salt,
            priority=priority,
        )

    return make


@pytest.fixture
def pooled(logits_of):
    """What an embedding must be: made from hidden states that the executor gives for each beginning of the prompt."""

    def make(prompt, *, pooling="mean", normalize=True):
        rows = np.array([logits_of(list(prompt[: end + 1]))[:5] for end in range(len(prompt))], dtype=np.float64)
        vector = rows.mean(axis=0) if pooling == "mean" else rows[-1]
        return vector / np.linalg.norm(vector) if normalize else vector

    return make


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("length", [1, 2, 4, 23])
def test_an_embedding_is_the_pooled_hidden_state(make_engine, embedding_of, pooled, finish, length, pooling, normalize):
    """In float64 from float32 rows; nothing is generated, and nothing is left behind."""
    engine = make_engine(max_step_tokens=8)
    prompt = tokens(length, seed=length)
    engine.add(embedding_of("a", prompt, pooling=pooling, normalize=normalize))
    finish(engine)
    output = engine.forget("a")
    np.testing.assert_allclose(output.embedding, pooled(prompt, pooling=pooling, normalize=normalize), rtol=1e-6)
    assert output.embedding.dtype == np.float32
    (only,) = output.outputs
    assert (only.token_ids, only.text, only.finish_reason) == ([], "", FinishReason.STOP)
    assert output.metrics.ttft_s >= output.metrics.queue_s
    assert output.metrics.decode_s == 0
    assert engine.cache.usage == 0
    assert sum(engine.executor.logit_rows) == 0, "no logits are computed for it"
    assert sum(engine.executor.hidden_rows) == (length if pooling == "mean" else 1)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=30), min_size=1, max_size=8),
    max_num_seqs=st.integers(1, 4),
    max_step_tokens=st.integers(1, 40),
    page_size=st.sampled_from([1, 3, 16]),
    pooling=st.lists(st.sampled_from(["mean", "last", None]), min_size=8, max_size=8),
)
def test_embeddings_in_any_batch_equal_those_alone(
    make_engine, request_of, embedding_of, expected, pooled, finish, prompts, max_num_seqs, max_step_tokens, page_size,
    pooling,
):  # fmt: skip
    """Beside texts and each other, in any chunks, with prefixes in the cache: the same vectors, the same texts."""
    engine = make_engine(
        num_pages=-(-300 // page_size),
        page_size=page_size,
        max_model_len=100,
        max_num_seqs=max_num_seqs,
        max_step_tokens=max_step_tokens,
    )
    for index, (prompt, kind) in enumerate(zip(prompts, pooling, strict=False)):
        if kind is None:
            engine.add(request_of(str(index), prompt, max_tokens=5))
        else:
            engine.add(embedding_of(str(index), prompt, pooling=kind))
    finish(engine)
    for index, (prompt, kind) in enumerate(zip(prompts, pooling, strict=False)):
        output = engine.forget(str(index))
        if kind is None:
            assert output.outputs[0].token_ids == expected(prompt, 5)
            assert output.embedding is None
        else:
            np.testing.assert_allclose(output.embedding, pooled(prompt, pooling=kind), rtol=1e-5, atol=1e-6)
    assert engine.cache.usage == 0


def test_chunks_change_no_bit(make_engine, embedding_of, finish):
    """Rows are added one by one, in order, whatever the chunks."""
    prompt = tokens(61, seed=0)
    vectors = set()
    for chunk in (1, 2, 7, 32, 100):
        engine = make_engine(max_step_tokens=chunk, max_num_seqs=1)
        engine.add(embedding_of("a", prompt))
        finish(engine)
        vectors.add(engine.forget("a").embedding.tobytes())
    assert len(vectors) == 1


def test_the_cache_skips_nothing_that_a_mean_needs(make_engine, embedding_of, pooled, finish):
    """A prompt that is in the cache is read again for the mean, and not for the last position alone."""
    engine = make_engine(page_size=4)
    prompt = tokens(18, seed=1)
    read = []
    for name, pooling in (("first", "mean"), ("second", "mean"), ("last", "last")):
        before = sum(engine.executor.step_tokens)
        engine.add(embedding_of(name, prompt, pooling=pooling))
        finish(engine)
        read.append(sum(engine.executor.step_tokens) - before)
        output = engine.forget(name)
        np.testing.assert_allclose(output.embedding, pooled(prompt, pooling=pooling), rtol=1e-6)
        assert output.metrics.cached_tokens == 18 - read[-1]
    assert read == [18, 18, 2]


def test_what_an_embedding_read_serves_others(make_engine, embedding_of, request_of, expected, finish):
    """Its pages are published like any prompt's, to those of its salt."""
    engine = make_engine(page_size=4)
    prompt = tokens(17, seed=2)
    engine.add(embedding_of("a", prompt, salt="mine"))
    finish(engine)
    for salt, cached in (("mine", 16), ("other", 0)):
        engine.add(request_of(salt, prompt, max_tokens=3, salt=salt))
        finish(engine)
        output = engine.forget(salt)
        assert output.outputs[0].token_ids == expected(prompt, 3)
        assert output.metrics.cached_tokens == cached


@pytest.mark.parametrize("host_pages", [0, 64])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_preempted_prompt_is_pooled_once(make_engine, embedding_of, request_of, pooled, finish, pooling, host_pages):
    """What was read before its pages were taken is not added twice, whether they are computed again or moved back."""
    engine = make_engine(
        num_pages=10, page_size=4, max_model_len=40, max_step_tokens=6, policy="priority", host_pages=host_pages
    )
    prompt = tokens(30, seed=3)
    engine.add(embedding_of("low", prompt, pooling=pooling, priority=1))
    for _ in range(3):
        engine.step()
    engine.add(request_of("high", tokens(13, seed=5), max_tokens=15, priority=0))
    finish(engine)
    assert engine.scheduler.num_preemptions > 0
    np.testing.assert_allclose(engine.forget("low").embedding, pooled(prompt, pooling=pooling), rtol=1e-5)
    engine.forget("high")
    assert engine.cache.usage == 0


@pytest.mark.parametrize("window, states", [(5, 0), (None, 12), (5, 12)])
def test_groups_of_layers(make_engine, embedding_of, pooled, finish, window, states):
    """Models with windows and recurrent states embed as others do."""
    engine = make_engine(window=window, states=states, max_step_tokens=7)
    prompts = [tokens(20 + seed, seed=seed) for seed in range(3)]
    for pooling in ("mean", "last"):
        for index, prompt in enumerate(prompts):
            engine.add(embedding_of(str(index), prompt, pooling=pooling))
        finish(engine)
        for index, prompt in enumerate(prompts):
            np.testing.assert_allclose(engine.forget(str(index)).embedding, pooled(prompt, pooling=pooling), rtol=1e-5)


def test_a_prompt_as_long_as_the_context(make_engine, embedding_of, pooled, finish):
    """No room is kept for an answer; one more token is refused with the figures."""
    engine = make_engine(num_pages=8, page_size=4)
    prompt = tokens(32, seed=4)
    engine.add(embedding_of("a", prompt))
    finish(engine)
    np.testing.assert_allclose(engine.forget("a").embedding, pooled(prompt), rtol=1e-5)
    with pytest.raises(PromptTooLongError, match="the prompt has 33 tokens, and the context holds 32 "):
        engine.add(embedding_of("b", [*prompt, 1]))
    small = make_engine(num_pages=4, page_size=4, max_model_len=32)
    with pytest.raises(DoesNotFitError, match="needs 32 tokens of cache, and the cache holds 16"):
        small.add(embedding_of("a", prompt))


def without_hidden_states(engine):
    class Plain:
        """The members of an executor, and no more."""

        def __init__(self, executor):
            for name in ("name", "page_size", "cache_groups", "sampler", "step", "copy_pages", "close"):
                setattr(self, name, getattr(executor, name))
            self.swap_out, self.swap_in = executor.swap_out, executor.swap_in

    return type(engine)(Plain(engine.executor), None, vocab_size=97, eos_token_ids=(), max_model_len=64)


def test_without_hidden_states_embeddings_are_refused(make_engine, embedding_of, request_of, expected, finish):
    """If the plugin did not promise them, or the executor has none; generations go on."""
    for engine in (make_engine(embed=False), without_hidden_states(make_engine())):
        with pytest.raises(UnsupportedError, match="there are no embeddings of this model"):
            engine.add(embedding_of("a", [1, 2]))
        assert not engine.has_work
        engine.add(request_of("b", [1, 2], max_tokens=4))
        finish(engine)
        assert engine.forget("b").outputs[0].token_ids == expected([1, 2], 4)


def test_numbers_that_are_none_fail_one_request(make_engine, embedding_of, pooled, finish):
    """The others of the step are not disturbed."""
    engine = make_engine()
    engine.executor.nan_for = {13}
    engine.add(embedding_of("bad", [13, 1]))
    engine.add(embedding_of("good", [12, 1]))
    finish(engine)
    bad = engine.forget("bad")
    assert bad.outputs[0].finish_reason is FinishReason.ERROR
    assert bad.embedding is None
    with pytest.raises(EngineError, match="hidden states that are no numbers"):
        raise bad.error
    np.testing.assert_allclose(engine.forget("good").embedding, pooled([12, 1]), rtol=1e-5)
    assert engine.cache.usage == 0


def test_a_failed_step_ends_embeddings_too(make_engine, embedding_of):
    """With the reason, and no page is lost."""
    engine = make_engine(max_step_tokens=8)
    engine.executor.fail_at = 1
    engine.add(embedding_of("a", [1] * 20))
    engine.step()
    with pytest.raises(RuntimeError, match="planted failure"):
        engine.step()
    (event,) = engine.step()
    assert event.finish_reason is FinishReason.ERROR
    assert engine.forget("a").embedding is None
    assert engine.cache.usage == 0


@pytest.mark.parametrize("how", ["abort", "timeout"])
def test_an_embedding_that_is_not_awaited_ends_with_nothing(make_engine, embedding_of, how):
    """Its pages are free at once."""
    engine = make_engine(max_step_tokens=8)
    engine.add(embedding_of("a", [1] * 30, timeout_s=60 if how == "abort" else 1e-9))
    if how == "abort":
        engine.step()
        engine.abort("a")
        assert engine.cache.usage == 0
        assert engine.output("a").outputs[0].finish_reason is FinishReason.ABORT
    else:
        (event,) = engine.step()
        assert event.finish_reason is FinishReason.TIMEOUT
    assert engine.forget("a").embedding is None
    assert not engine.has_work


def test_drafts_are_for_texts_alone(make_engine, embedding_of, request_of, expected, pooled, finish):
    """Speculation beside embeddings, of which prompts of one token look as if they decoded."""
    drafting = Drafting(NgramProposer(), SpeculationControl(4), max_step_tokens=64)
    engine = make_engine(drafting=drafting)
    engine.add(request_of("text", [1, 2, 1, 2, 1, 2], max_tokens=12))
    engine.add(embedding_of("one", [7]))
    engine.add(embedding_of("some", [1, 2, 1, 2, 1]))
    finish(engine)
    assert engine.forget("text").outputs[0].token_ids == expected([1, 2, 1, 2, 1, 2], 12)
    np.testing.assert_allclose(engine.forget("one").embedding, pooled([7]), rtol=1e-5)
    np.testing.assert_allclose(engine.forget("some").embedding, pooled([1, 2, 1, 2, 1]), rtol=1e-5)


def test_metrics_count_the_prompt_and_no_generation(make_engine, embedding_of, finish):
    """An embedding is a request that ended well; how fast tokens come is not its business."""
    engine = make_engine()
    engine.add(embedding_of("a", [1] * 9))
    finish(engine)
    metrics = engine.snapshot()
    assert metrics.requests_finished.values == {"stop": 1}
    assert metrics.prompt_tokens.total == 9
    assert metrics.generation_tokens.total == 0
    counted = {name for name, metric in vars(metrics).items() if getattr(metric, "count", 0)}
    assert counted == {
        "request_latency", "queue_time", "prefill_time", "inference_time", "step_tokens", "request_prompt_tokens",
    }  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_of_zeros_stays_one(pooling):
    """There is nothing to divide by."""
    pool = Pool(PoolingParams(pooling=pooling), 2, 3)
    assert not pool.whole
    pool.take(np.zeros((len(pool.wanted(0, 2)), 3), dtype=np.float32))
    assert pool.whole
    assert pool.embedding().tolist() == [0, 0, 0]


def test_wanted_rows_by_chunk():
    """Each position once; of chunks that were read before, nothing."""
    mean, last = Pool(PoolingParams(), 10, 2), Pool(PoolingParams(pooling="last"), 10, 2)
    assert (mean.reads_all, last.reads_all) == (True, False)
    assert list(mean.wanted(0, 4)) == [0, 1, 2, 3]
    mean.take(np.ones((4, 2), dtype=np.float32))
    assert list(mean.wanted(0, 3)) == []
    assert list(mean.wanted(0, 6)) == [4, 5]
    assert list(mean.wanted(4, 6)) == [4, 5, 6, 7, 8, 9]
    assert list(last.wanted(0, 9)) == []
    assert list(last.wanted(6, 4)) == [9]


def test_the_asynchronous_engine_embeds_and_cancels(make_engine, embedding_of, pooled, slow_down):
    """A result is awaited like a text; one that nobody awaits any more gives its pages back."""

    async def main():
        engine = make_engine(num_pages=600, max_step_tokens=8, max_model_len=2400)
        async with AsyncEngine(engine) as asynchronous:
            streams = [await asynchronous.submit(embedding_of(str(n), [n, 1, 2])) for n in range(3)]
            for n, stream in enumerate(streams):
                output = await stream.result()
                np.testing.assert_allclose(output.embedding, pooled([n, 1, 2]), rtol=1e-5)
                assert stream.stamps.last_token == stream.stamps.first_token
            slow_down(engine.executor)
            long = await asynchronous.submit(embedding_of("long", [3] * 2300))
            task = asyncio.ensure_future(long.result())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert long.output is not None
            assert long.output.embedding is None
            assert long.output.outputs[0].finish_reason is FinishReason.ABORT
        assert engine.cache.usage == 0

    asyncio.run(main())
