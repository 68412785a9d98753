"""The application of a server with its models, for another ASGI server to run: they come and go with its life."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference_pio.interfaces import PioError
from inference_pio.serve._app import create_app
from inference_pio.serve._server_state import ServerState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._models.spec import ModelSpec
    from inference_pio.serve._settings import ServeSettings


class LifespanApp:
    """An ASGI application that loads its models when it is started and frees them when it is stopped.

    It can be sent to another process before, with settings and models that can: nothing is loaded then, and of keys
    only hashes are there.

    Args:
        settings: What the server is told. Address, TLS and the clocks of connections are the business of whoever
            listens.
        models: At least one.
    """

    def __init__(self, settings: ServeSettings, models: Sequence[ModelSpec]) -> None:
        self._settings = settings
        self._models = tuple(models)
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one life.

        Raises:
            RuntimeError: A request before the start: whoever listens does not speak ASGI's lifespan.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._app is None:
            raise RuntimeError("the application was not started: its server must speak ASGI's lifespan protocol")
        await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        state = ServerState(self._settings)
        try:
            await state.models.start(self._models, self._settings.preload)
        except PioError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        self._app = create_app(state)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        state.draining = True
        await state.models.stop()
        await state.models.close()
        if state.tracing is not None:
            await asyncio.to_thread(state.tracing.close)
        await send({"type": "lifespan.shutdown.complete"})
