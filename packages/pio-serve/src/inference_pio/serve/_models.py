"""The models that a server answers with, and whether they are there yet."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from inference_pio.serve._errors import ApiError, not_found, unavailable
from inference_pio.serve._json import json_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

    from inference_pio.core import LLM, AsyncEngine
    from inference_pio.serve._call import Call


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model.

    Attributes:
        name: What requests call it.
        llm: The model.
        engine: What runs it.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    llm: LLM
    engine: AsyncEngine
    created: int


class ModelTable:
    """Models by name. Requests for one that is still loading are told to come back.

    Args:
        max_waiting: Requests that may wait for a place in the batch of each model.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._served: dict[str, ServedModel] = {}
        self._loading: set[str] = set()

    @property
    def is_loading(self) -> bool:
        """Whether any model is on its way."""
        return bool(self._loading)

    def all(self) -> list[ServedModel]:
        """Those that are there."""
        return list(self._served.values())

    def get(self, name: str | None) -> ServedModel:
        """The model called ``name``; without a name, the only one.

        Raises:
            ApiError: 404, there is none of this name; 503, it is loading; 400, a name is needed.
        """
        if name is None and len(self._served) + len(self._loading) == 1:
            name = next(iter((*self._served, *self._loading)))
        if name is None:
            raise ApiError(400, "parameter 'model' is required", param="model", code="missing_parameter")
        model = self._served.get(name)
        if model is not None:
            return model
        if name in self._loading:
            raise unavailable(f"model {name!r} is loading", "model_loading", retry_after_s=2)
        if self._loading and not self._served:
            raise unavailable("the model is loading", "model_loading", retry_after_s=2)
        names = ", ".join(self._served)
        raise not_found(f"there is no model {name!r:.200}; there is {names}", "model_not_found", param="model")

    async def load(self, name: str, make: Callable[[], LLM], *, served_as: str | None = None) -> ServedModel:
        """Load a model beside whatever the loop is doing.

        Args:
            name: What it is called until it says its own name.
            make: Loads it; called in a thread.
            served_as: What requests call it; None for its own name.

        Raises:
            PioError: What ``make`` raised.
        """
        self._loading.add(name)
        try:
            llm = await _in_thread(make)
            model = ServedModel(
                served_as or llm.name, llm, llm.start_async(max_waiting=self._max_waiting), int(time.time())
            )
            self._served[model.name] = model
        finally:
            self._loading.discard(name)
        return model

    async def stop(self) -> None:
        """End every open request, and the engines. What still reads is told that its request was cut off."""
        for model in self.all():
            await model.engine.close()

    async def close(self) -> None:
        """Free the models. Harmless when called twice."""
        for model in self.all():
            await asyncio.to_thread(model.llm.close)
        self._served.clear()


async def _in_thread(make: Callable[[], LLM]) -> LLM:
    """``make`` in a thread that does not keep the process alive: loading may take minutes, stopping must not."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[LLM] = loop.create_future()

    def run() -> None:
        try:
            llm = make()
        except BaseException as error:  # noqa: BLE001 - belongs to whoever awaits the model
            _post(loop, loaded, None, error)
        else:
            _post(loop, loaded, llm, None)

    threading.Thread(target=run, name="pio-load", daemon=True).start()
    return await loaded


def _post(
    loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[LLM], llm: LLM | None, error: BaseException | None
) -> None:
    def resolve() -> None:
        if loaded.cancelled():
            if llm is not None:
                llm.close()
        elif llm is not None:
            loaded.set_result(llm)
        else:
            assert error is not None
            loaded.set_exception(error)

    if not loop.is_closed():
        loop.call_soon_threadsafe(resolve)


class ModelCard(msgspec.Struct, kw_only=True):
    """What is told of a model.

    Attributes:
        id: What requests call it.
        object: ``"model"``.
        created: When it was loaded, in seconds since 1970.
        owned_by: Who serves it.
        max_model_len: Tokens of prompt and answer together.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str = "inference-pio"
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    """All models.

    Attributes:
        object: ``"list"``.
        data: One card for each.
    """

    object: str = "list"
    data: list[ModelCard]


async def list_models(call: Call) -> Response:
    """``GET /v1/models``."""
    return json_response(ModelList(data=[_card(model) for model in call.server.models.all()]))


async def show_model(call: Call) -> Response:
    """``GET /v1/models/{model}``.

    Raises:
        ApiError: There is none of this name.
    """
    return json_response(_card(call.server.models.get(call.path_params["model"])))


def _card(model: ServedModel) -> ModelCard:
    return ModelCard(id=model.name, created=model.created, max_model_len=model.llm.max_model_len)
