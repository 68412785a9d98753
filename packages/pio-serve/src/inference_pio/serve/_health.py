"""Whether the process lives, whether it can answer, and what it is."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from inference_pio.interfaces import EngineError
from inference_pio.serve._errors import unavailable
from inference_pio.serve._json import json_response

if TYPE_CHECKING:
    from starlette.responses import Response

    from inference_pio.serve._call import Call

ANSWER_S = 10.0
"""Longer than any step should take: an engine that says nothing for so long hangs."""


class Status(msgspec.Struct):
    """All is well.

    Attributes:
        status: ``"ok"``.
    """

    status: str = "ok"


class Version(msgspec.Struct):
    """What serves.

    Attributes:
        version: Of pio-serve.
    """

    version: str


async def livez(_call: Call) -> Response:
    """The process lives; nothing else is asked."""
    return json_response(Status())


async def health(call: Call) -> Response:
    """Every engine answers; models that are not loaded are no illness.

    Raises:
        ApiError: 503: one does not, or the server is loading what it begins with, or it is stopping.
    """
    server = call.server
    if server.draining:
        raise unavailable("the server is stopping", "stopping")
    if server.models.is_loading or not server.models.named():
        raise unavailable("the model is loading", "model_loading", retry_after_s=2)
    for model in server.models.all():
        try:
            await model.engine.ping(timeout_s=ANSWER_S)
        except EngineError as error:
            if model in server.models.all():  # and was not unloaded meanwhile
                raise unavailable("the engine has stopped or hangs", "engine_failed") from error
    return json_response(Status())


async def show_version(_call: Call) -> Response:
    """What serves."""
    return json_response(Version(version("pio-serve")))
