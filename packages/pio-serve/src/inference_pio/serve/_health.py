"""Whether the process lives, whether it can answer, and what it is."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from inference_pio.interfaces import DoesNotFitError, PioError, QueueFullError, SamplingParams
from inference_pio.serve._errors import unavailable
from inference_pio.serve._json import json_response

if TYPE_CHECKING:
    from starlette.responses import Response

    from inference_pio.serve._call import Call
    from inference_pio.serve._models import ServedModel

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
    """Every engine answers.

    Raises:
        ApiError: 503: one does not, or a model is loading, or the server is stopping.
    """
    server = call.server
    if server.draining:
        raise unavailable("the server is stopping", "stopping")
    if server.models.is_loading or not server.models.all():
        raise unavailable("the model is loading", "model_loading", retry_after_s=2)
    for model in server.models.all():
        await _ask(model)
    return json_response(Status())


async def show_version(_call: Call) -> Response:
    """What serves."""
    return json_response(Version(version("pio-serve")))


async def _ask(model: ServedModel) -> None:
    """Have an idle engine compute a token; of a busy one, that it takes the question is enough.

    Raises:
        ApiError: It does neither.
    """
    request = model.llm.make_request({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1, temperature=0.0))
    deadline = time.monotonic() + ANSWER_S
    busy = model.llm.metrics.requests_running.value > 0
    try:
        async with asyncio.timeout(ANSWER_S):
            stream = await model.engine.submit(request, wait=False)
            if busy:
                await stream.aclose()
            else:
                await stream.result()
    except (QueueFullError, DoesNotFitError):
        return  # said by the engine itself, between two steps
    except TimeoutError:
        # It may have become busy meanwhile; then it has counted something since.
        late = time.monotonic() - deadline
        raise unavailable(f"the engine has not answered for {ANSWER_S + late:.0f} s", "engine_hangs") from None
    except PioError as error:
        raise unavailable("the engine has failed", "engine_failed") from error
