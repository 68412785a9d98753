"""Which models are loaded when: leases, budgets, failures; with models that are none, so that every order is tried."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from inference_pio.core import EngineMetrics
from inference_pio.interfaces import ConfigError, DoesNotFitError, MalformedFileError, ModelNotFoundError
from inference_pio.serve._beside import THREADS, in_thread
from inference_pio.serve._errors import ApiError
from inference_pio.serve._models.pool import RETRY_S, ModelPool
from inference_pio.serve._models.pooled_model import ModelState
from inference_pio.serve._models.spec import ModelSpec, PlannedModel

MIB = 2**20


class Engine:
    """An engine that runs nothing."""

    def snapshot(self):
        return EngineMetrics()

    async def close(self):
        await asyncio.sleep(0)


class Model:
    """A model that computes nothing, and knows whether it was closed."""

    def __init__(self, name, size):
        self.name, self.weight_bytes, self.kv_cache_bytes = name, size * MIB - 1, 1
        self.max_model_len = 256
        self.start_error = None
        self.closed = False

    def start_async(self, *, max_waiting):
        assert max_waiting == 7
        if self.start_error is not None:
            raise self.start_error
        return Engine()

    def close(self):
        self.closed = True


class Source:
    """Where a model comes from: counts its loads, and may hold them up or fail."""

    def __init__(self, name, size=10, served_as=None):
        self.name, self.size = name, size
        self.made = []
        self.error = self.start_error = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.spec = ModelSpec(
            label=name, plan=lambda _: PlannedModel(name, self.size * MIB, self.load), served_as=served_as
        )

    def load(self):
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        self.made.append(Model(self.name, self.size))
        self.made[-1].start_error = self.start_error
        return self.made[-1]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 1e-6  # no two moments are the same
        return self.now


def run(test, *sources, budget=None, preload="none", **options):
    """``test(pool)`` in a loop, with a pool of ``sources``."""

    async def whole():
        pool = ModelPool(7, budget=None if budget is None else budget * MIB, **options)
        await pool.start([source.spec for source in sources], preload)
        try:
            await test(pool)
        finally:
            await pool.close()
        # A load that was under way is let go of when it comes, which closing does not wait for.
        async with asyncio.timeout(10):
            while any(thread.name == THREADS for thread in threading.enumerate()):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
        assert all(model.closed for source in sources for model in source.made)
        assert pool.used == 0

    asyncio.run(whole())


async def use(pool, name, seconds=5.0):
    """What a request does: the loaded model, while it is leased."""
    async with pool.lease(name, timeout_s=seconds) as served:
        assert not served.llm.closed
        return served


async def refusal(pool, name, seconds=5.0):
    """The error that a request gets instead of the model."""
    with pytest.raises(ApiError) as caught:
        await use(pool, name, seconds)
    return caught.value


def test_many_requests_at_once_load_a_model_once():
    """And all of them get it."""
    source = Source("a")

    async def test(pool):
        served = await asyncio.gather(*(use(pool, "a") for _ in range(50)))
        assert len(source.made) == 1
        assert {id(one.llm) for one in served} == {id(source.made[0])}
        assert pool.find("a").leases == 0

    run(test, source)


@pytest.mark.parametrize(("preload", "loaded"), [("first", ["a"]), ("all", ["a", "b"]), ("none", [])])
def test_begins_with_what_it_is_told_to(preload, loaded):
    """The others are known by name."""

    async def test(pool):
        assert [model.name for model in pool.all()] == loaded
        assert [model.name for model in pool.named()] == ["a", "b"]
        assert not pool.is_loading

    run(test, Source("a"), Source("b"), preload=preload)


def test_least_recently_used_gives_way():
    """Within the budget as many stay as fit; then those go whose last use was longest ago, as many as it takes."""
    a, b, c, d = (Source(name) for name in "abcd")

    async def test(pool):
        for name in "abcab":  # c is the oldest use
            await use(pool, name)
            assert pool.used <= 30 * MIB
        await use(pool, "d")
        assert {model.name for model in pool.all()} == {"a", "b", "d"}
        assert c.made[0].closed
        d.size = 15
        await pool.unload("d")
        await use(pool, "d")
        assert {model.name for model in pool.all()} == {"b", "d"}
        assert [len(source.made) for source in (a, b, c, d)] == [1, 1, 1, 2]

    run(test, a, b, c, d, budget=30)


def test_model_that_is_loaded_again_keeps_its_name():
    """Also while it loads, where only a loaded model says what it is called."""
    source = Source("a")

    async def test(pool):
        await pool.load("label", source.load)
        assert await pool.unload("a")
        source.go_on.clear()
        loading = asyncio.ensure_future(use(pool, "a"))
        while pool.find(None).moving is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert [(model.name, model.state) for model in pool.named()] == [("a", ModelState.LOADING)]
        source.go_on.set()
        await loading
        assert pool.find("a").loads == 2

    run(test)


def test_leased_model_is_never_unloaded():
    """Not for another, not when told to, not by time; whoever asked for the other is told the figures and to wait."""
    a, b, clock = Source("a", 20), Source("b", 20), Clock()

    async def test(pool):
        async with pool.lease("a", timeout_s=1) as served:
            error = await refusal(pool, "b")
            assert (error.status, error.code) == (503, "memory_busy")
            assert error.headers["retry-after"] == "2"
            assert error.message == (
                "model 'b' takes 20.0 MiB; of the 30.0 MiB that all models may take 20.0 MiB are in use by models that "
                "are loading or have open requests, and 10.0 MiB are free"
            )
            with pytest.raises(ApiError, match="model 'a' has 1 open request") as caught:
                await pool.unload("a")
            assert caught.value.status == 409
            clock.now += 1000
            pool.unload_idle()
            await asyncio.sleep(0.01)
            assert not served.llm.closed
        await use(pool, "b")
        assert served.llm.closed

    run(test, a, b, budget=30, clock=clock, unload_idle_s=10)


def test_idle_ones_stay_where_their_memory_would_not_do():
    """A model that cannot fit anyway unloads nothing."""
    a, b, c = Source("a", 10), Source("b", 20), Source("c", 25)

    async def test(pool):
        await use(pool, "a")
        async with pool.lease("b", timeout_s=1):
            assert (await refusal(pool, "c")).code == "memory_busy"
        assert {model.name for model in pool.all()} == {"a", "b"}

    run(test, a, b, c, budget=30)


def test_model_that_can_never_fit_is_400():
    """No client should try that again; and nothing is unloaded for it."""
    a, b = Source("a"), Source("b")

    async def test(pool):
        await use(pool, "a")
        b.size = 31  # its file was replaced
        error = await refusal(pool, "b")
        assert (error.status, error.code, error.param) == (400, "does_not_fit", "model")
        assert error.message == "model 'b' takes 31.0 MiB, and all models together may take 30.0 MiB"
        assert [model.name for model in pool.all()] == ["a"]
        b.size = 10
        await use(pool, "b")

    run(test, a, b, budget=30)
    assert b.made


def test_begins_with_no_model_that_can_never_fit():
    """What is wrong with the command line is said at the start; so is more than fits to begin with."""

    async def test(_):
        raise AssertionError("it began")

    with pytest.raises(DoesNotFitError, match=r"model 'b' takes 31\.0 MiB, and all models together may take 30\.0"):
        run(test, Source("a"), Source("b", 31), budget=30)
    with pytest.raises(DoesNotFitError, match=r"the models to begin with take 40\.0 MiB, .* --preload"):
        run(test, Source("a", 20), Source("b", 20), budget=30, preload="all")
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        run(test, Source("a"), Source("b", served_as="a"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelNotFoundError("no file or folder '/secret/path'"), "its files are not there"),
        (MalformedFileError("/secret/path", "header", "too short"), "its files break the rules of their format"),
        (DoesNotFitError("the weights of 'a' need 9.00 GiB"), "the weights of 'a' need 9.00 GiB"),
        (OSError(5, "Input/output error", "/secret/path"), "the server's log says why"),
    ],
)
def test_failed_load_is_told_to_all_who_wait(error, said, caplog):
    """With the reason, without paths, which are in the log; the next try waits, twice as long each time."""
    source, clock = Source("a"), Clock()
    source.error = error
    source.go_on.clear()

    async def test(pool):
        waiting = [asyncio.ensure_future(refusal(pool, "a")) for _ in range(3)]
        await asyncio.sleep(0)
        source.go_on.set()
        for one in await asyncio.gather(*waiting):
            assert (one.status, one.code) == (503, "model_load_failed")
            assert one.message == f"model 'a' could not be loaded: {said}"
            assert one.headers["retry-after"] == "5"
        assert pool.find("a").load_failures == 1
        assert str(error) in caplog.text
        source.error = None
        clock.now += RETRY_S - 1
        assert (await refusal(pool, "a")).headers["retry-after"] == "1"
        source.error = error
        clock.now += 1
        assert (await refusal(pool, "a")).headers["retry-after"] == "10"
        assert pool.find("a").state is ModelState.FAILED
        assert pool.used == 0
        source.error = None
        clock.now += 10
        await use(pool, "a")
        assert (pool.find("a").failures, pool.find("a").load_failures) == (0, 2)

    run(test, source, clock=clock)


def test_model_that_cannot_be_started_is_closed():
    """As where the system gives no more threads: its memory is free again, and it may be tried again."""
    source, clock = Source("a", 10), Clock()

    async def test(pool):
        source.start_error = RuntimeError("can't start new thread")
        assert (await refusal(pool, "a")).code == "model_load_failed"
        assert source.made[0].closed
        assert pool.used == 0
        source.start_error = None
        clock.now += RETRY_S
        assert (await use(pool, "a")).llm is source.made[1]
        assert pool.used == 10 * MIB

    run(test, source, budget=15, clock=clock)


def test_model_to_begin_with_that_cannot_be_started_is_closed():
    """And the server ends with the reason."""
    source = Source("a")
    source.start_error = RuntimeError("can't start new thread")

    async def start():
        pool = ModelPool(7)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await pool.start([source.spec])
        assert pool.used == 0

    asyncio.run(start())
    assert source.made[0].closed


def test_who_goes_away_stops_waiting_and_the_load_goes_on():
    """Another request that waits is not disturbed, and without any the model is there for the next."""
    source = Source("a")
    source.go_on.clear()

    async def test(pool):
        first, second = (asyncio.ensure_future(use(pool, "a")) for _ in range(2))
        await asyncio.sleep(0.01)
        assert pool.find("a").leases == 2
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert pool.find("a").leases == 1
        source.go_on.set()
        assert (await second).llm is source.made[0]
        assert len(source.made) == 1

    run(test, source)


def test_waiting_is_bounded():
    """503, with when to come back."""
    source = Source("a")
    source.go_on.clear()

    async def test(pool):
        error = await refusal(pool, "a", 0.05)
        assert (error.status, error.code) == (503, "model_loading")
        assert "still loading after 0.05 s" in error.message
        source.go_on.set()
        await use(pool, "a")
        assert len(source.made) == 1

    run(test, source)


def test_unloads_what_nobody_asked_for():
    """As long as it was told to wait, since the end of the last request; not before, and never without that."""
    source, clock = Source("a"), Clock()

    async def test(pool):
        await use(pool, "a")
        clock.now += 9
        pool.unload_idle()
        assert pool.all()
        await use(pool, "a")
        clock.now += 9
        pool.unload_idle()
        assert pool.all()
        clock.now += 2
        pool.unload_idle()
        assert not pool.all()
        served = await use(pool, "a")  # while the other is on its way out
        assert source.made[0].closed
        assert served.llm is source.made[1]

    run(test, source, clock=clock, unload_idle_s=10)
    source = Source("a")

    async def never(pool):
        await use(pool, "a")
        clock.now += 1e9
        pool.unload_idle()
        assert pool.all()

    run(never, source, clock=clock)


def test_unloading_waits_for_requests_when_told_to():
    """And says whether there was anything to unload."""
    source = Source("a")

    async def test(pool):
        assert not await pool.unload("a")
        source.go_on.clear()
        request = asyncio.ensure_future(use(pool, "a"))
        await asyncio.sleep(0)
        unloading = asyncio.ensure_future(pool.unload("a", wait=True))
        await asyncio.sleep(0.01)
        assert not unloading.done()
        source.go_on.set()
        await request
        assert await unloading
        assert source.made[0].closed
        with pytest.raises(ApiError, match="there is no model 'b'; there is a"):
            await pool.unload("b")

    run(test, source)


def test_unloading_waits_for_a_load_that_nobody_waits_for():
    """Its request has gone; the model comes, and goes."""
    source = Source("a")
    source.go_on.clear()

    async def test(pool):
        request = asyncio.ensure_future(use(pool, "a"))
        await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        with pytest.raises(ApiError, match="model 'a' is loading"):
            await pool.unload("a")
        unloading = asyncio.ensure_future(pool.unload("a", wait=True))
        await asyncio.sleep(0.01)
        source.go_on.set()
        assert await asyncio.wait_for(unloading, 5)
        assert source.made[0].closed

    run(test, source)


def test_memory_of_what_it_begins_with_is_set_aside():
    """A request for another model that comes meanwhile is told to wait, and the server begins all the same."""
    a, b, c = Source("a", 10), Source("b", 10), Source("c", 15)
    a.go_on.clear()

    async def whole():
        pool = ModelPool(7, budget=30 * MIB)
        starting = asyncio.ensure_future(pool.start([a.spec, b.spec], "all"))
        late = pool.add(c.spec)
        late.name = "c"
        while pool.used < 20 * MIB:
            await asyncio.sleep(0.001)
        assert (await refusal(pool, "a")).code == "model_loading"
        error = await refusal(pool, "c")
        assert error.code == "memory_busy"
        assert "20.0 MiB are in use by models that are loading or have open requests" in error.message
        a.go_on.set()
        assert [served.name for served in await starting] == ["a", "b"]
        assert pool.used == 20 * MIB
        await use(pool, "c")
        assert pool.used == 25 * MIB
        await pool.close()

    asyncio.run(whole())


def test_load_may_be_tried_again_at_once():
    """By whoever has repaired what was wrong."""
    source = Source("a")
    source.error = OSError(5, "Input/output error")

    async def test(pool):
        assert (await refusal(pool, "a")).code == "model_load_failed"
        source.error = None
        assert (await refusal(pool, "a")).code == "model_load_failed"
        pool.retry_now("a")
        await use(pool, "a")

    run(test, source)


def test_closing_ends_what_is_being_unloaded():
    """A model on its way out is freed by that, not forgotten between two steps of it."""
    source = Source("a", 10)

    async def test(pool):
        await use(pool, "a")
        pool.unload_idle()
        assert pool.find("a").state is ModelState.UNLOADING
        await pool.close()
        assert source.made[-1].closed

    run(test, source, unload_idle_s=0.0)


def test_result_that_nobody_gets_is_discarded():
    """Whether the cancellation comes before it, or between its coming and the waking of who waits for it."""

    async def test(when):
        left = []
        go_on = threading.Event()
        task = asyncio.ensure_future(in_thread(lambda: go_on.wait(10), discard=left.append))
        await asyncio.sleep(0)
        if when == "before":
            task.cancel()
        go_on.set()
        while any(thread.name == THREADS for thread in threading.enumerate()):
            threading.Event().wait(0.001)  # the loop stands still: what the thread gives waits for its turn
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left == [True]

    for when in ("before", "between"):
        asyncio.run(test(when))


def test_stopping_ends_waiting():
    """A model that comes after all is closed, and nothing is loaded any more."""
    source = Source("a")
    source.go_on.clear()

    async def whole():
        pool = ModelPool(7)
        await pool.start([source.spec], "none")
        waiting = asyncio.ensure_future(refusal(pool, "a"))
        await asyncio.sleep(0.01)
        await pool.stop()
        await pool.close()
        assert (await waiting).code == "stopping"
        source.go_on.set()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if source.made and source.made[0].closed:
                break
        assert source.made[0].closed
        assert (await refusal(pool, "a")).code == "stopping"

    asyncio.run(whole())


@pytest.mark.parametrize("seed", range(5))
def test_any_order_keeps_the_budget(seed):
    """Requests, cancellations and unloads at random: what is leased is open, and never more is there than fits."""
    chance = random.Random(seed)  # noqa: S311 - an order of events, no secret
    sources = [Source(name, size) for name, size in zip("abcde", (5, 10, 10, 15, 20), strict=True)]

    async def request(pool):
        try:
            async with pool.lease(chance.choice("abcde"), timeout_s=5) as served:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                    assert not served.llm.closed
                    open_bytes = sum(s.size for s in sources for model in s.made if not model.closed)
                    assert open_bytes <= 30
        except ApiError as error:
            assert error.code == "memory_busy"  # noqa: PT017 - one of two ways that it may go
            return 0
        return 1

    async def test(pool):
        tasks = []
        for _ in range(300):
            match chance.randrange(8):
                case 0 if tasks:
                    chance.choice(tasks).cancel()
                case 1:
                    pool.unload_idle()
                case _:
                    tasks.append(asyncio.ensure_future(request(pool)))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if not chance.randrange(20):
                await asyncio.sleep(0.003)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [one for one in done if isinstance(one, BaseException)]
        assert all(isinstance(one, asyncio.CancelledError) for one in failures), failures
        assert sum(one for one in done if isinstance(one, int)) > 20
        assert all(pool.find(source.name).leases == 0 for source in sources)

    run(test, *sources, budget=30, unload_idle_s=0.001)
