"""What a server needs of the engine: deltas of each choice, log-probabilities, usage, times, health, forms."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from inference_pio.core import AsyncEngine
from inference_pio.core import _async_engine as module
from inference_pio.core._structure import StructureCompiler
from inference_pio.interfaces import (
    EngineError,
    FinishReason,
    InvalidRequestError,
    QueueFullError,
    StructuredOutputs,
)
from inference_pio.processing import tokenizer_from_folder

CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.:;!?{}[]\"'-+*/ĠÃ©"
END = len(CHARS)


def run(coroutine):
    """With a bound, so that a test that hangs fails."""

    async def bounded():
        async with asyncio.timeout(20):
            return await coroutine

    return asyncio.run(bounded())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token per byte; ``é`` needs two of them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = Backend(models.BPE(vocab={char: place for place, char in enumerate(CHARS)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}), encoding="utf-8")
    return tokenizer_from_folder(folder)


@pytest.fixture
def inner(make_engine, tokenizer):
    return make_engine(num_pages=256, tokenizer=tokenizer, eos=(END,), max_model_len=400)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_choices_stream_side_by_side(inner, tokenizer, request_of):
    """Joined, the events of each index are its output: text, tokens, log-probabilities; bytes come from the tokens."""
    prompt = [1, 2, 3]

    async def main():
        async with AsyncEngine(inner) as engine:
            request = request_of("a", prompt, n=3, seed=5, temperature=1.0, logprobs=2, max_tokens=30, min_tokens=30)
            stream = await engine.submit(request)
            return [event async for event in stream], stream.output

    events, output = run(main())
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    firsts = [event.index for event in events[:6]]
    assert len(set(firsts)) == 3, "the choices wait for each other"
    for choice in output.outputs:
        own = [event for event in events if event.index == choice.index]
        assert "".join(event.text for event in own) == choice.text
        assert [event.token_id for event in own] == choice.token_ids
        assert [event.logprobs for event in own] == choice.logprobs
        assert [event.finish_reason for event in own] == [None] * 29 + [FinishReason.LENGTH]
        for event in own:
            assert 2 <= len(event.logprobs) <= 3
            entry = event.logprobs[event.token_id]
            assert sorted(one.rank for one in event.logprobs.values())[:2] == [1, 2]
            if event.token_id < END:
                assert tokenizer.token_bytes(event.token_id).decode(errors="replace") == entry.decoded_token


def test_log_probabilities_are_those_of_the_model(inner, request_of, logits_of):
    """Of the prompt from the first event on, of the text with each event; temperature and bias do not change them."""
    prompt = [1, 2, 3, 4, 5]
    hold, step = threading.Event(), inner.executor.step

    def stepwise(batch):
        if batch.token_ids.size == 1:  # beyond the prompt
            hold.wait(5)
        return step(batch)

    inner.executor.step = stepwise

    async def main():
        async with AsyncEngine(inner) as engine:
            request = request_of(
                "a", prompt, prompt_logprobs=1, logprobs=1, temperature=0.5, logit_bias={7: 50.0}, max_tokens=40
            )
            async with await engine.submit(request) as stream:
                event = await anext(stream)
                assert stream.output is None
                hold.set()
                return event, stream.prompt_logprobs

    event, positions = run(main())
    assert event.token_id == 7
    assert event.logprobs[7].logprob == pytest.approx(log_softmax(logits_of(prompt))[7], abs=1e-5)
    assert positions[0] is None
    assert len(positions) == len(prompt)
    for place in range(1, len(prompt)):
        expected = log_softmax(logits_of(prompt[:place]))
        assert positions[place][prompt[place]].logprob == pytest.approx(expected[prompt[place]], abs=1e-5)
        assert min(one.rank for one in positions[place].values()) == 1


def test_prompt_log_probabilities_come_with_a_request_of_one_token_too(inner, request_of):
    """As clients ask that score texts: echo the prompt, generate as little as may be."""

    async def main():
        async with AsyncEngine(inner) as engine:
            stream = await engine.submit(request_of("a", [1, 2, 3], prompt_logprobs=0, max_tokens=1))
            output = await stream.result()
            assert stream.prompt_logprobs == output.prompt_logprobs
            return output

    assert [None if one is None else set(one) for one in run(main()).prompt_logprobs] == [None, {2}, {3}]


def test_seeds_repeat_and_bias_forbids(inner, request_of):
    """The same seed gives the same choices, another one others; a bias of -100 keeps a token away."""

    async def main():
        async with AsyncEngine(inner) as engine:

            async def texts(request_id, **params):
                stream = await engine.submit(request_of(request_id, [9], temperature=1.0, max_tokens=20, **params))
                return [choice.token_ids for choice in (await stream.result()).outputs]

            first = await texts("a", n=2, seed=3)
            assert await texts("b", n=2, seed=3) == first
            assert await texts("c", n=2, seed=4) != first
            banned = first[0][0]
            assert banned not in (await texts("d", seed=3, logit_bias={banned: -100.0}))[0]

    run(main())


def test_stop_strings_end_a_choice_and_are_named(inner, tokenizer, request_of, expected):
    """The text ends before the string, which never shows in a delta; an end token names nothing."""
    text = tokenizer.decode([token_id for token_id in expected([3], 12) if token_id < END])
    stop = text[4:6]
    assert text.index(stop) == 4

    async def main():
        async with AsyncEngine(inner) as engine:
            stream = await engine.submit(request_of("a", [3], max_tokens=12, ignore_eos=True, stop=["??", stop]))
            deltas = [event.text async for event in stream]
            ended = await engine.submit(request_of("b", [3], logit_bias={END: 100.0}))
            return deltas, stream.output.outputs[0], (await ended.result()).outputs[0]

    deltas, choice, ended = run(main())
    assert choice.text == "".join(deltas) == text[:4]
    assert (choice.finish_reason, choice.stop_reason) == (FinishReason.STOP, stop)
    assert (ended.finish_reason, ended.stop_reason, ended.text) == (FinishReason.STOP, None, "")


def test_usage_and_times(inner, request_of):
    """Cached tokens of the prompt are counted; the stamps are in order and begin when the request was handed in."""

    async def main():
        async with AsyncEngine(inner) as engine:
            prompt = list(range(20))
            await (await engine.submit(request_of("a", prompt, max_tokens=2, ignore_eos=True))).result()
            before = time.perf_counter()
            stream = await engine.submit(request_of("b", prompt, max_tokens=5, ignore_eos=True))
            assert before <= stream.stamps.arrived <= time.perf_counter()
            output = await stream.result()
            return before, stream.stamps, output.metrics

    before, stamps, metrics = run(main())
    assert metrics.cached_tokens == 16  # whole pages before the last token
    assert before <= stamps.arrived <= stamps.scheduled <= stamps.first_token <= stamps.last_token
    assert stamps.last_token <= time.perf_counter()
    assert stamps.first_token - stamps.arrived == pytest.approx(metrics.ttft_s)


def test_a_request_that_never_ran_has_only_arrived(make_engine, request_of):
    """The other stamps stay open."""

    async def main():
        async with AsyncEngine(make_engine(max_num_seqs=1)) as engine:
            first = await engine.submit(request_of("a", [1], max_tokens=200))
            second = await engine.submit(request_of("b", [1], max_tokens=200))
            await second.aclose()
            await first.aclose()
            return second.stamps

    stamps = run(main())
    assert (stamps.scheduled, stamps.first_token, stamps.last_token) == (None, None, None)


def test_aborting_by_id_frees_pages_from_any_thread(inner, request_of):
    """The reader sees the end; unknown ids harm nobody."""

    async def main():
        async with AsyncEngine(inner) as engine:
            stream = await engine.submit(request_of("a", [1], n=4, temperature=1.0, max_tokens=300, ignore_eos=True))
            await anext(stream)
            await asyncio.to_thread(engine.abort, "nobody")
            await asyncio.to_thread(engine.abort, "a")
            async for _ in stream:
                pass
            assert stream.output.outputs[0].finish_reason is FinishReason.ABORT
            assert inner.cache.usage == 0
            assert not inner.has_work

    run(main())


def test_the_snapshot_is_of_now_and_stays(make_engine, request_of):
    """Running, waiting in and before the queue, pages, counters; a gauge does not keep what the last step saw."""
    inner = make_engine(num_pages=512, max_num_seqs=1, max_waiting=1)
    first, second, later, step = *(threading.Event() for _ in range(3)), inner.executor.step

    def slow(batch):
        if not inner.executor.step_tokens:
            first.wait(5)
        else:
            second.set()
            later.wait(5)
        return step(batch)

    inner.executor.step = slow

    async def main():
        async with AsyncEngine(inner) as engine:
            await engine.submit(request_of("a", [1, 2, 3], max_tokens=400))
            waiting = asyncio.create_task(engine.submit(request_of("b", [1])))
            outside = asyncio.create_task(engine.submit(request_of("c", [1])))
            await asyncio.sleep(0.05)
            first.set()
            await asyncio.to_thread(second.wait, 5)
            during = engine.snapshot()
            later.set()
            for request_id in "abc":
                engine.abort(request_id)
            await asyncio.gather(waiting, outside, return_exceptions=True)
            await engine.ping()
            return during, engine.snapshot()

    during, after = run(main())
    assert during.requests_running.value == 1
    assert during.requests_waiting.value == 2
    assert 0 < during.kv_cache_usage.value < 1
    assert during.prompt_tokens.total == 3
    assert during.prefix_queries.total >= 0
    assert during.generation_tokens.total >= 1
    assert during.requests_finished.total == 0
    assert (after.requests_running.value, after.requests_waiting.value, after.kv_cache_usage.value) == (0, 0, 0)
    assert after.requests_finished.values["abort"] >= 1
    assert after.time_to_first_token.count == 1
    assert during.requests_finished.total == 0, "the copy counts on"
    assert [metric.name for metric in after] == [metric.name for metric in inner.metrics]


def test_the_engine_answers_a_ping_between_steps(inner, request_of):
    """Idle or busy; one that hangs within a step does not, one that was closed says so."""
    entered, hold, step = threading.Event(), threading.Event(), inner.executor.step

    def stuck(batch):
        entered.set()
        hold.wait(5)
        return step(batch)

    async def main():
        engine = AsyncEngine(inner)
        assert 0 <= await engine.ping() < 10
        stream = await engine.submit(request_of("a", [1], max_tokens=300, ignore_eos=True))
        assert 0 <= await engine.ping() < 10
        inner.executor.step = stuck
        await asyncio.to_thread(entered.wait, 5)
        with pytest.raises(EngineError, match=r"has not answered within 0\.05 s"):
            await engine.ping(timeout_s=0.05)
        hold.set()
        await stream.aclose()
        await engine.close()
        with pytest.raises(EngineError, match="being closed"):
            await engine.ping()

    run(main())


def test_a_stopped_engine_fails_the_ping(make_engine, request_of):
    """With the reason."""

    async def main():
        inner = make_engine()
        inner.executor.fail_at = 0
        engine = AsyncEngine(inner, on_failure="stop")
        with pytest.raises(EngineError, match="planted failure"):
            await (await engine.submit(request_of("a", [1]))).result()
        with pytest.raises(EngineError, match="the engine has stopped: planted failure"):
            await engine.ping()
        await engine.close()

    run(main())


FORM = StructuredOutputs(regex="[ab]{5}c")


@pytest.fixture
def stalled(monkeypatch):
    """Forms compile only once ``stalled.release`` is set; ``stalled.threads`` are the names of those that compile."""
    found = SimpleNamespace(release=threading.Event(), threads=[])
    compile_one = StructureCompiler._compile

    def slow(self, *key):
        found.threads.append(threading.current_thread().name)
        found.release.wait(5)
        return compile_one(self, *key)

    monkeypatch.setattr(StructureCompiler, "_compile", slow)
    return found


def test_forms_are_compiled_beside_the_engine(inner, request_of, stalled):
    """While one compiles, others run to their end; the text has the form."""

    async def main():
        async with AsyncEngine(inner) as engine:
            formed = asyncio.create_task(engine.submit(request_of("a", [1], structured_outputs=FORM, n=2)))
            plain = await engine.submit(request_of("b", [1], max_tokens=20, ignore_eos=True))
            assert (await plain.result()).finished
            assert not formed.done()
            stalled.release.set()
            return await (await formed).result()

    output = run(main())
    assert all(len(choice.text) == 6 and choice.text[5] == "c" for choice in output.outputs)
    assert [name.split("_")[0] for name in stalled.threads] == ["pio-forms"]


def test_forms_that_take_too_long_are_refused(inner, request_of, stalled, monkeypatch):
    """The one that compiles is at fault; those that it held up may come again."""
    monkeypatch.setattr(module, "COMPILE_S", 0.3)

    async def main():
        async with AsyncEngine(inner) as engine:
            forms = [StructuredOutputs(choice=[text]) for text in ("a", "b", "c")]
            requests = [request_of(str(place), [1], structured_outputs=form) for place, form in enumerate(forms)]
            answers = await asyncio.gather(*map(engine.submit, requests), return_exceptions=True)
            stalled.release.set()
            again = await engine.submit(requests[2])
            return answers, (await again.result()).outputs[0].text, engine.snapshot()

    (first, second, third), text, metrics = run(main())
    for answer in (first, second):
        assert isinstance(answer, InvalidRequestError)
        assert str(answer) == "the form of structured_outputs takes more than 0.3 s to compile (simplify it)"
    assert isinstance(third, QueueFullError)
    assert text == "c"
    assert metrics.requests_finished.total == 1


def test_leaving_while_a_form_compiles_leaves_nothing(inner, request_of, stalled):
    """The request never comes to the engine."""

    async def main():
        async with AsyncEngine(inner) as engine:
            task = asyncio.create_task(engine.submit(request_of("a", [1], structured_outputs=FORM)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stalled.release.set()
            assert not inner.has_work
            assert engine.snapshot().request_n.count == 0

    run(main())


def test_closing_while_a_form_compiles(inner, request_of, stalled):
    """Whoever waits for it hears why, and so does whoever comes later."""

    async def main():
        engine = AsyncEngine(inner)
        forms = [StructuredOutputs(choice=[text]) for text in ("a", "b", "c")]
        requests = [request_of(str(place), [1], structured_outputs=form) for place, form in enumerate(forms)]
        tasks = [asyncio.create_task(engine.submit(request)) for request in requests]
        await asyncio.sleep(0.05)
        await engine.close()
        stalled.release.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(answer) for answer in answers] == ["the engine is being closed"] * 3
        with pytest.raises(EngineError, match="being closed"):
            await engine.submit(requests[0])

    run(main())


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (StructuredOutputs(json={"type": "object"}), "{"),
        (StructuredOutputs(json={"type": "array", "items": {"type": "boolean"}, "maxItems": 2}), "["),
        (StructuredOutputs(choice=["yes", "no"]), "yn"),
        (StructuredOutputs(grammar='root ::= "x" [0-9]+'), "x"),
    ],
    ids=["json_object", "json_schema", "choice", "gbnf"],
)
def test_forms_hold_for_what_streams(inner, request_of, form, pattern):
    """The first character already is of the form; what is refused is refused where it was submitted."""

    async def main():
        async with AsyncEngine(inner) as engine:
            stream = await engine.submit(request_of("a", [4], structured_outputs=form, max_tokens=64))
            text = "".join([event.text async for event in stream])
            with pytest.raises(InvalidRequestError, match="unclosed"):
                await engine.submit(request_of("b", [4], structured_outputs=StructuredOutputs(regex="[")))
            return text

    assert run(main())[0] in pattern
