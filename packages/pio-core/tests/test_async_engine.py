"""The engine for asyncio: streams, cancellation, back-pressure, failures, shutdown."""

import asyncio

import pytest

from inference_pio.core import AsyncEngine
from inference_pio.interfaces import EngineError, FinishReason, InvalidRequestError, QueueFullError


def run(coroutine):
    """With a bound, so that a test that hangs fails."""

    async def bounded():
        async with asyncio.timeout(20):
            return await coroutine

    return asyncio.run(bounded())


def test_many_at_once_get_their_own_tokens(make_engine, request_of, expected):
    """Each coroutine reads its stream to the end; the texts are those of requests alone."""

    async def main():
        async with AsyncEngine(make_engine(num_pages=256, max_num_seqs=8)) as engine:

            async def one(index):
                stream = await engine.submit(request_of(str(index), [index, 5], max_tokens=index % 7 + 1))
                events = [event async for event in stream]
                assert stream.output.finished
                assert [event.token_id for event in events] == stream.output.outputs[0].token_ids
                return stream.output.outputs[0].token_ids

            texts = await asyncio.gather(*(one(index) for index in range(60)))
            assert texts == [expected([index, 5], index % 7 + 1) for index in range(60)]
            assert engine.metrics.requests_finished.values == {"length": 60}

    run(main())


def test_a_request_that_is_refused_raises_where_it_was_submitted(make_engine, request_of, expected):
    """And disturbs nobody."""

    async def main():
        async with AsyncEngine(make_engine()) as engine:
            good = await engine.submit(request_of("good", [1], max_tokens=9))
            with pytest.raises(InvalidRequestError, match="token id 97 is not in the vocabulary"):
                await engine.submit(request_of("bad", [97]))
            assert (await good.result()).outputs[0].token_ids == expected([1], 9)

    run(main())


def test_leaving_a_stream_cancels_its_request(make_engine, request_of, slow_down):
    """The pages are free when the block has been left; also where the coroutine was cancelled."""
    inner = make_engine()
    slow_down(inner.executor)

    async def main():
        async with AsyncEngine(inner) as engine:
            async with await engine.submit(request_of("a", [1], max_tokens=200)) as stream:
                await anext(stream)
            assert stream.output.outputs[0].finish_reason is FinishReason.ABORT
            assert inner.cache.usage == 0
            task = asyncio.create_task((await engine.submit(request_of("b", [1], max_tokens=200))).result())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert inner.cache.usage == 0
            assert not inner.has_work

    run(main())


def test_a_full_queue_makes_submitters_wait_or_fail(make_engine, request_of, expected):
    """Waiting is the default; none is lost, whatever number comes."""

    async def main():
        async with AsyncEngine(make_engine(max_num_seqs=2, max_waiting=2)) as engine:
            outputs = await asyncio.gather(*(submit_and_read(engine, index) for index in range(40)))
            assert [output.outputs[0].token_ids for output in outputs] == [expected([i], 5) for i in range(40)]
            refused = 0
            streams = []
            for index in range(40):
                try:
                    streams.append(await engine.submit(request_of(f"n{index}", [index], max_tokens=60), wait=False))
                except QueueFullError:
                    refused += 1
            assert refused > 0
            for stream in streams:
                assert (await stream.result()).finished

    async def submit_and_read(engine, index):
        return await (await engine.submit(request_of(str(index), [index], max_tokens=5))).result()

    run(main())


def test_cancelling_while_waiting_for_a_place(make_engine, request_of, slow_down):
    """The request is never run."""
    inner = make_engine(max_num_seqs=1, max_waiting=1)
    slow_down(inner.executor)

    async def main():
        async with AsyncEngine(inner) as engine:
            first = [await engine.submit(request_of(name, [1], max_tokens=250)) for name in "ab"]
            task = asyncio.create_task(engine.submit(request_of("c", [1])))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for stream in first:
                await stream.aclose()
            assert engine.metrics.requests_finished.values == {"abort": 2}

    run(main())


@pytest.mark.parametrize("on_failure", ["continue", "stop"])
def test_a_step_that_fails(make_engine, request_of, expected, on_failure):
    """Its requests get the reason; the engine goes on or stops, as it was told."""

    async def main():
        inner = make_engine()
        inner.executor.fail_at = 2
        engine = AsyncEngine(inner, on_failure=on_failure)
        stream = await engine.submit(request_of("a", [1], max_tokens=9))
        with pytest.raises(EngineError, match="planted failure"):
            await stream.result()
        assert stream.output.outputs[0].finish_reason is FinishReason.ERROR
        if on_failure == "continue":
            again = await engine.submit(request_of("b", [1], max_tokens=9))
            assert (await again.result()).outputs[0].token_ids == expected([1], 9)
            assert engine.failure is None
        else:
            with pytest.raises(EngineError, match="the engine has stopped: planted failure"):
                await engine.submit(request_of("b", [1]))
            assert str(engine.failure) == "planted failure"
        await engine.close()
        assert inner.cache.usage == 0

    run(main())


@pytest.mark.parametrize("drain_s", [0.0, 10.0])
def test_closing_drains_or_cancels(make_engine, request_of, drain_s):
    """What runs may finish within the bound; new requests are refused; nothing hangs."""

    async def main():
        engine = AsyncEngine(make_engine())
        stream = await engine.submit(request_of("a", [1], max_tokens=100))
        closing = asyncio.create_task(engine.close(drain_s=drain_s))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="being closed"):
            await engine.submit(request_of("b", [1]))
        await closing
        await engine.close()
        await stream.aclose()
        wanted = FinishReason.LENGTH if drain_s else FinishReason.ABORT
        assert stream.output.outputs[0].finish_reason is wanted

    run(main())


def test_a_reader_whose_loop_is_gone_does_not_hold_pages(make_engine, request_of):
    """Its request is cancelled."""
    inner = make_engine()
    engine = AsyncEngine(inner)

    async def leave():
        await engine.submit(request_of("a", [1], max_tokens=250))

    asyncio.run(leave())
    run(engine.close())
    assert inner.cache.usage == 0
