"""The models of a server: loaded when asked for, within a budget of memory, and unloaded when nobody asks.

A request holds a :class:`Lease` on its model. What is leased is never unloaded, and there is no other way to a loaded
model: a request cannot lose its model while it runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from inference_pio.interfaces import ConfigError, DoesNotFitError, PioError
from inference_pio.serve._beside import in_thread
from inference_pio.serve._errors import ApiError, not_found, unavailable
from inference_pio.serve._models.errors import Refusal, gib, load_failed, never_fits, others_busy
from inference_pio.serve._models.free import give_memory_back
from inference_pio.serve._models.metrics import add_up
from inference_pio.serve._models.pooled_model import ModelState, PooledModel
from inference_pio.serve._models.served import ServedModel
from inference_pio.serve._models.spec import spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from inference_pio.core import LLM
    from inference_pio.serve._models.spec import ModelSpec, PlannedModel
    from inference_pio.serve._settings import Preload

LOG = logging.getLogger("inference_pio.serve")
RETRY_S = 5.0
"""After a load that failed; twice as long after each further one in a row."""
MAX_RETRY_S = 300.0


class ModelPool:
    """Models by name. For one event loop.

    Args:
        max_waiting: Requests that may wait for a place in the batch of each model.
        budget: Bytes that weights and caches of all models may take together; None for no bound.
        unload_idle_s: Seconds without a request after which a model is unloaded; None for never.
        clock: Seconds, monotonic.

    Attributes:
        budget: The same.
    """

    def __init__(
        self,
        max_waiting: int,
        *,
        budget: int | None = None,
        unload_idle_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self._max_waiting = max_waiting
        self._unload_idle_s = unload_idle_s
        self._clock = clock
        self._models: list[PooledModel] = []
        self._room = asyncio.Lock()
        self._went_idle = asyncio.Event()
        self._stopped = False

    @property
    def is_loading(self) -> bool:
        """Whether the server is still about to load what it starts with."""
        return any(model.at_start for model in self._models)

    @property
    def used(self) -> int:
        """Bytes that are set aside for models that are loaded, or on their way."""
        return sum(model.nbytes for model in self._models)

    def named(self) -> list[PooledModel]:
        """All whose names are known."""
        return [model for model in self._models if model.name]

    def all(self) -> list[ServedModel]:
        """Those that are loaded."""
        return [model.served for model in self._models if model.served is not None]

    def find(self, name: str | None) -> PooledModel:
        """The model called ``name``, loaded or not; without a name, the only one.

        Raises:
            ApiError: 404, there is none of this name; 503, its name is not known yet; 400, a name is needed.
        """
        if name is None:
            if len(self._models) != 1:
                raise ApiError(400, "parameter 'model' is required", param="model", code="missing_parameter")
            return self._models[0]
        for model in self._models:
            if model.name == name:
                return model
        if any(name == model.spec.label for model in self._models if not model.name):
            raise unavailable(f"model {name!r} is loading", "model_loading", retry_after_s=2)
        if any(not model.name for model in self._models):
            raise unavailable("the server is still finding its models", "model_loading", retry_after_s=2)
        names = ", ".join(model.name for model in self._models)
        raise not_found(f"there is no model {name!r:.200}; there is {names}", "model_not_found", param="model")

    def retry_s(self, model: PooledModel) -> float | None:
        """Seconds until ``model``, which could not be loaded, is tried again; None where nothing is waited for."""
        wait = model.retry_at - self._clock()
        return wait if model.refusal is not None and wait > 0 else None

    def lease(self, name: str | None, *, timeout_s: float) -> Lease:
        """The use of a model, for ``async with``; loads it first where it is not loaded.

        Args:
            name: What it is called; None for the only one.
            timeout_s: Seconds to wait for it at most.

        Raises:
            ApiError: As :meth:`find`.
        """
        return Lease(self, self.find(name), timeout_s)

    def add(self, spec: ModelSpec, *, at_start: bool = False) -> PooledModel:
        """Take a model in. It is looked for when it is loaded, or by :meth:`look`.

        Args:
            spec: Where it comes from.
            at_start: Whether it will be loaded by :meth:`begin`; requests are told to come back until then.
        """
        model = PooledModel(spec=spec, name=spec.served_as or "", at_start=at_start)
        self._models.append(model)
        return model

    async def start(self, specs: Sequence[ModelSpec], preload: Preload = "first") -> list[ServedModel]:
        """Take models in, look for all of them, and load some.

        Returns:
            Those that were loaded.

        Raises:
            PioError: One of them is not there or cannot be loaded, two have one name, or they do not fit the budget.
        """
        wanted = {"first": 1, "all": len(specs), "none": 0}[preload]
        models = [self.add(spec, at_start=True) for spec in specs]
        try:
            for model in models:
                model.planned = await self._look(model)
            for model in models[wanted:]:
                self._leave_for_later(model)
            self._set_aside(models[:wanted])
            return [await self._load_at_start(model) for model in models[:wanted]]
        finally:
            for model in models:
                model.at_start = False

    async def load(self, name: str, make: Callable[[], LLM], *, served_as: str | None = None) -> ServedModel:
        """Take in a model of which nothing is known but how to load it, and load it.

        Args:
            name: What it is called until it says its own name.
            make: Loads it; called in a thread.
            served_as: What requests call it; None for its own name.

        Raises:
            PioError: What ``make`` raised.
        """
        (served,) = await self.start([spec_of(name, make, served_as=served_as)])
        return served

    async def unload(self, name: str, *, wait: bool = False) -> bool:
        """Unload a model.

        Args:
            name: What it is called.
            wait: Whether to wait until no request uses it.

        Returns:
            Whether it was loaded.

        Raises:
            ApiError: As :meth:`find`; 409, requests use it.
        """
        model = self.find(name)
        while True:
            if model.moving is not None and model.state is ModelState.UNLOADING:
                await asyncio.shield(model.moving)
            if model.is_idle:
                await asyncio.shield(self._begin_unload(model))
                return True
            if model.state in {ModelState.UNLOADED, ModelState.FAILED} and not model.leases:
                return False
            if not wait:
                count = model.leases
                raise ApiError(
                    409,
                    f"model {name!r} has {count} open request{'s' if count != 1 else ''}"
                    if count
                    else f"model {name!r} is loading",
                    code="model_in_use",
                )
            self._went_idle.clear()
            await self._went_idle.wait()

    def retry_now(self, name: str) -> None:
        """Have the next request load a model that could not be loaded, however short ago that was.

        Raises:
            ApiError: As :meth:`find`.
        """
        self.find(name).retry_at = 0.0

    def unload_idle(self) -> None:
        """Begin to unload what nobody has asked for as long as may be."""
        if self._unload_idle_s is None:
            return
        before = self._clock() - self._unload_idle_s
        for model in self._models:
            if model.is_idle and model.last_used <= before:
                LOG.info("model %s is unloaded: nobody asked for it", model.name)
                self._begin_unload(model)

    async def stop(self) -> None:
        """End every open request, and the engines. What still reads is told that its request was cut off."""
        self._stopped = True
        for model in self.all():
            await model.engine.close()

    async def close(self) -> None:
        """Free the models. Harmless when called twice."""
        self._stopped = True
        for model in self._models:
            if model.moving is not None:
                if model.state is not ModelState.UNLOADING:  # that frees the model, and nobody else would
                    model.moving.cancel()
                await asyncio.wait({model.moving})
            served, model.served, model.nbytes = model.served, None, 0
            model.state = ModelState.UNLOADED
            if served is not None:
                await asyncio.to_thread(served.llm.close)

    # What follows is for leases.

    def begin_lease(self, model: PooledModel) -> None:
        """One more request uses ``model`` or waits for it."""
        model.leases += 1
        self._touch(model)

    def end_lease(self, model: PooledModel) -> None:
        """One less."""
        model.leases -= 1
        self._touch(model)
        if not model.leases:
            self._went_idle.set()

    async def loaded(self, model: PooledModel, timeout_s: float) -> ServedModel:
        """``model``, once it is there; it must have been leased.

        Raises:
            ApiError: 503, it is loading as the server starts, did not come in time, could not be loaded, or the memory
                is in use by others; 400, it can never be loaded.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while model.served is None:
                    await asyncio.wait({moving := self._moving(model)})  # goes on if this one stops waiting
                    refusal = None if moving.cancelled() else moving.result()
                    if refusal is not None:
                        raise refusal.error()
        except TimeoutError:
            raise unavailable(
                f"{model.label} is still loading after {round(timeout_s, 2):g} s", "model_loading", retry_after_s=5
            ) from None
        return model.served

    def _moving(self, model: PooledModel) -> asyncio.Task[Refusal | None]:
        """What has to end before ``model`` can be there: it is begun unless it is under way.

        Raises:
            ApiError: It is not to be waited for.
        """
        if self._stopped:
            raise unavailable("the server is stopping", "stopping")
        if model.at_start:
            raise unavailable(f"{model.label} is loading", "model_loading", retry_after_s=2)
        if model.moving is not None:
            return model.moving
        wait = self.retry_s(model)
        if model.refusal is not None and wait is not None:
            raise model.refusal.error(wait)
        model.state = ModelState.LOADING
        model.moving = asyncio.ensure_future(self._try_to_load(model))
        return model.moving

    def _touch(self, model: PooledModel) -> None:
        model.last_used, model.last_used_at = self._clock(), time.time()

    async def _try_to_load(self, model: PooledModel) -> Refusal | None:
        """Load ``model``, whose state says so already; why it is not there then, if it is not."""
        try:
            await self._load(model)
        except _RefusedError as error:
            refusal = error.refusal
            model.state = ModelState.UNLOADED
        except Exception as error:  # noqa: BLE001 - whatever loading raises, those who wait must be answered
            refusal = self._failed(model, error)
        else:
            return None
        finally:
            model.moving = None
            self._went_idle.set()  # where nobody waits for it any more
        return refusal

    def _failed(self, model: PooledModel, error: Exception) -> Refusal:
        model.state = ModelState.FAILED
        model.failures += 1
        model.load_failures += 1
        wait = min(MAX_RETRY_S, RETRY_S * 2 ** (model.failures - 1))
        model.retry_at = self._clock() + wait
        model.refusal = load_failed(model.label, error, round(wait))
        # No request is in what loading says, so all of it may stand in the log.
        said = str(error) if isinstance(error, PioError) else f"{type(error).__name__}: {error}"
        LOG.error("model %s could not be loaded: %s", model.name, said)
        return model.refusal

    async def _load_at_start(self, model: PooledModel) -> ServedModel:
        model.state = ModelState.LOADING
        try:
            served = await self._load(model)
        except BaseException:  # cancellation too; it goes on up
            model.state, model.nbytes = ModelState.FAILED, 0
            raise
        model.at_start = False
        return served

    async def _load(self, model: PooledModel) -> ServedModel:
        """Make room for ``model`` and load it.

        Raises:
            _RefusedError: There is no room.
            Exception: What loading raised.
        """
        started = time.perf_counter()
        planned = model.planned
        if planned is None:
            planned = await self._look(model)
        model.planned = None  # its files may be others when it is loaded again
        await self._make_room(model, planned.nbytes)
        try:
            llm = await in_thread(planned.load, discard=_close)
            served = self._start(model, llm)
        except BaseException:  # cancellation too; it goes on up
            model.nbytes = 0
            raise
        model.served, model.name, model.created = served, served.name, served.created
        model.state, model.failures, model.refusal = ModelState.LOADED, 0, None
        model.loads += 1
        model.load_s += time.perf_counter() - started
        self._touch(model)
        LOG.info("model %s is loaded, with %s of memory", model.name, gib(model.nbytes))
        if self.budget is not None and self.used > self.budget:
            LOG.warning("models take %s, more than the %s that they may", gib(self.used), gib(self.budget))
        return served

    def _start(self, model: PooledModel, llm: LLM) -> ServedModel:
        """Have ``llm`` run for ``model``.

        Raises:
            Exception: It does not, and is closed.
        """
        try:
            engine = llm.start_async(max_waiting=self._max_waiting)
            model.max_model_len, model.nbytes = llm.max_model_len, llm.weight_bytes + llm.kv_cache_bytes
            return ServedModel(model.name or llm.name, llm, engine, int(time.time()))
        except BaseException:  # Ctrl-C too; it goes on up
            llm.close()  # in this thread: that the system gives no other may be what went wrong
            raise

    async def _look(self, model: PooledModel) -> PlannedModel:
        """Find the files of ``model``, and its name.

        Raises:
            _RefusedError: It can never fit the budget.
            PioError: It is not there, its files are not sound, or its name is taken.
        """
        try:
            planned = await in_thread(lambda: model.spec.plan(self.budget))
        except DoesNotFitError as error:
            raise _RefusedError(Refusal(error.message, "does_not_fit", None)) from error
        # Where nothing is known of a model but how to load it, its name is what it said the last time.
        name = model.spec.served_as or planned.name or model.name
        if any(other.name == name for other in self._models if other is not model):
            raise ConfigError(f"two models are called {name!r}", hint="name one of them otherwise: NAME=MODEL")
        model.name = name
        if self.budget is not None and planned.nbytes > self.budget:
            raise _RefusedError(never_fits(model.label, planned.nbytes, self.budget))
        return planned

    def _leave_for_later(self, model: PooledModel) -> None:
        """Have ``model`` loaded when it is asked for; its files may be others by then."""
        planned, model.planned, model.at_start = model.planned, None, False
        assert planned is not None
        model.name = model.name or model.spec.label
        model.max_model_len = planned.max_model_len
        size = f", with {gib(planned.nbytes)} and a context of {planned.max_model_len}" if planned.nbytes else ""
        LOG.info("model %s is loaded when it is asked for%s", model.name, size)

    def _set_aside(self, models: list[PooledModel]) -> None:
        """Set aside what the models to begin with take.

        Raises:
            DoesNotFitError: It is more than there is.
        """
        total = sum(model.planned.nbytes for model in models if model.planned is not None)
        if self.budget is not None and total > self.budget:
            raise DoesNotFitError(
                f"the models to begin with take {gib(total)}, and all models may take {gib(self.budget)}",
                hint="raise --memory-budget, or leave --preload at 'first'",
            )
        for model in models:  # what is asked for meanwhile must not take it
            model.nbytes = 0 if model.planned is None else model.planned.nbytes

    async def _make_room(self, model: PooledModel, nbytes: int) -> None:
        """Set memory aside for ``model``, unloading what nobody uses, the least recently used first.

        Raises:
            _RefusedError: What is in use leaves too little.
        """
        async with self._room:  # one at a time, or two would count on the same room
            while self.budget is not None and self.used - model.nbytes + nbytes > self.budget:
                idle = [other for other in self._models if other.is_idle]
                leaving = [
                    other.moving
                    for other in self._models
                    if other.state is ModelState.UNLOADING and other.moving is not None
                ]
                busy = self.used - model.nbytes - sum(other.nbytes for other in idle)
                if leaving:
                    await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
                elif busy + nbytes > self.budget:
                    free = self.budget - self.used + model.nbytes
                    raise _RefusedError(others_busy(model.label, nbytes, free, busy, self.budget))
                else:
                    oldest = min(idle, key=lambda other: other.last_used)
                    LOG.info("model %s is unloaded to make room for %s", oldest.name, model.name)
                    await asyncio.shield(self._begin_unload(oldest))
            model.nbytes = nbytes

    def _begin_unload(self, model: PooledModel) -> asyncio.Task[Refusal | None]:
        """Unload ``model``, which must be idle: from here on nobody gets it."""
        assert model.is_idle
        served, model.served, model.state = model.served, None, ModelState.UNLOADING
        assert served is not None
        model.moving = asyncio.ensure_future(self._unload(model, served))
        return model.moving

    async def _unload(self, model: PooledModel, served: ServedModel) -> None:
        try:
            model.past = add_up(model.past, served.engine.snapshot())
            await served.engine.close()
            await asyncio.to_thread(served.llm.close)
            del served  # the last reference: its memory is free
            await asyncio.to_thread(give_memory_back)
        finally:
            model.state, model.nbytes, model.moving = ModelState.UNLOADED, 0, None
            model.unloads += 1
            self._went_idle.set()


class Lease:
    """The use of a model, for ``async with``, which gives the loaded model.

    Args:
        pool: Whose it is.
        model: Which.
        timeout_s: Seconds to wait for it at most.
    """

    def __init__(self, pool: ModelPool, model: PooledModel, timeout_s: float) -> None:
        self._pool = pool
        self._model = model
        self._timeout_s = timeout_s

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._model.name

    async def __aenter__(self) -> ServedModel:
        """Wait until the model is loaded.

        Raises:
            ApiError: As :meth:`ModelPool.loaded`.
        """
        self._pool.begin_lease(self._model)
        try:
            served = self._model.served
            return await self._pool.loaded(self._model, self._timeout_s) if served is None else served
        except BaseException:  # cancellation too; it goes on up
            self._pool.end_lease(self._model)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.end_lease(self._model)


class _RefusedError(DoesNotFitError):
    """There is no room for a model."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, hint="raise --memory-budget, or take a smaller model or less context")
        self.refusal = refusal


def _close(llm: LLM) -> None:
    llm.close()
