"""The models as requests see them: what they are called, and which are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from inference_pio.serve._json import json_response

if TYPE_CHECKING:
    from starlette.responses import Response

    from inference_pio.core import LLM, AsyncEngine
    from inference_pio.serve._call import Call
    from inference_pio.serve._models.pooled_model import PooledModel


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


class ModelCard(msgspec.Struct, kw_only=True):
    """What is told of a model.

    Attributes:
        id: What requests call it.
        object: ``"model"``.
        created: When it was loaded last, or else when the server learnt of it, in seconds since 1970.
        owned_by: Who serves it.
        max_model_len: Tokens of prompt and answer together, once that is known.
        status: ``"loaded"``, ``"loading"``, ``"unloaded"``, ``"unloading"`` or ``"failed"``. Requests load what is
            not loaded.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str = "inference-pio"
    max_model_len: int | UnsetType = UNSET
    status: str


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
    return json_response(ModelList(data=[_card(model) for model in call.server.models.named()]))


async def show_model(call: Call) -> Response:
    """``GET /v1/models/{model}``.

    Raises:
        ApiError: There is none of this name.
    """
    return json_response(_card(call.server.models.find(call.path_params["model"])))


def _card(model: PooledModel) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        max_model_len=UNSET if model.max_model_len is None else model.max_model_len,
        status=model.state.value,
    )
