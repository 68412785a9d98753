"""The life of a server: listen at once, load, serve, and on a signal finish what was begun."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import TYPE_CHECKING, Protocol

import uvicorn

from inference_pio.interfaces import PioError
from inference_pio.serve._admin.api import create_admin_app
from inference_pio.serve._admin.listener import AdminSocket
from inference_pio.serve._app import create_app
from inference_pio.serve._listeners import Listeners
from inference_pio.serve._models.spec import spec_of
from inference_pio.serve._protocol import bounded_protocol
from inference_pio.serve._server_state import ServerState

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from types import FrameType

    from starlette.types import ASGIApp

    from inference_pio.core import LLM
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._models.spec import ModelSpec
    from inference_pio.serve._settings import Bounds, ServeSettings

_LAST_WORDS_S = 5
"""For requests to be told that they were cut off, after the time to drain."""


class EndingServer(Protocol):
    """A server that says why it has ended.

    Attributes:
        failure: What went wrong, if something did.
        exit_signal: The signal that ended it, if one did.
    """

    failure: BaseException | None
    exit_signal: int | None

    def run(self) -> None:
        """Serve until something ends it."""


class PioServer(uvicorn.Server):
    """Uvicorn's server, that loads a model beside serving and drains before it stops.

    Args:
        settings: What it is told.
        name: What the model is called until it says its own name.
        load: Loads it; called in a thread.
        served_as: What requests call it; None for its own name.
        models: More models, or several in place of ``name``, ``load`` and ``served_as``.
        on_ready: Called once models are there, for each with the model and the address.
        on_listening: Called once connections are taken, with the address.

    Attributes:
        state: What all requests share.
        failure: Why it could not listen or load, if it could not.
        exit_signal: The signal that ended it, if one did.
    """

    def __init__(
        self,
        settings: ServeSettings,
        name: str | None = None,
        load: Callable[[], LLM] | None = None,
        *,
        served_as: str | None = None,
        models: Sequence[ModelSpec] = (),
        on_ready: Callable[[ServedModel, str], None] | None = None,
        on_listening: Callable[[str], None] | None = None,
    ) -> None:
        self.state = ServerState(settings)
        super().__init__(server_config(settings.bounds, create_app(self.state)))
        self.failure: BaseException | None = None
        self.exit_signal: int | None = None
        self._settings = settings
        self._listeners = Listeners(settings)
        self._specs = tuple(models)
        if name is not None and load is not None:
            self._specs = (spec_of(name, load, served_as=served_as), *self._specs)
        if not self._specs:
            raise ValueError("a server needs a model: its name and what loads it, or models")
        self._on_ready = on_ready
        self._on_listening = on_listening
        self._loading: asyncio.Task[None] | None = None
        self._admin: AdminSocket | None = None
        if settings.admin_socket is not None:
            self._admin = AdminSocket(settings.admin_socket, create_admin_app(self.state), settings.bounds)
        self._drain_until: float | None = None

    @property
    def address(self) -> str:
        """Where it listens: ``http://host:port``, or ``https://``."""
        return self._listeners.address

    def drain(self) -> None:
        """Take no new requests, and stop once those that run have ended, or their time is over. From any thread."""
        self.state.draining = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """The first signal drains, the second stops at once."""
        self.exit_signal = sig
        if self.state.draining:
            self.should_exit = self.force_exit = True
        self.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and begin to load."""
        try:
            if self._admin is not None:
                await self._admin.open()
            await self._listeners.open(self, sockets)
        except PioError as error:
            await self._close_admin()
            self.failure, self.should_exit = error, True
            return
        if self._on_listening is not None:
            self._on_listening(self.address)
        self._loading = asyncio.ensure_future(self._load_models())

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop now."""
        self.state.models.unload_idle()
        if self.state.draining and not self.should_exit:
            now = time.monotonic()
            if self._drain_until is None:
                self._drain_until = now + self._settings.drain_s
            if self.state.open == 0:
                self.should_exit = True
            elif now >= self._drain_until:
                await self.state.models.stop()
                self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - their listeners close them
        """Stop taking connections, let open replies end, free the models."""
        if self._loading is not None:
            self._loading.cancel()
        await self.state.models.stop()
        await super().shutdown()
        await self.state.models.close()
        if self.state.tracing is not None:
            await asyncio.to_thread(self.state.tracing.close)
        await self._close_admin()

    async def _close_admin(self) -> None:
        if self._admin is not None:
            await self._admin.close()

    async def _load_models(self) -> None:
        try:
            loaded = await self.state.models.start(self._specs, self._settings.preload)
        except Exception as error:  # noqa: BLE001 - raised again by serve(), once the connections are closed
            self.failure = error
            self.should_exit = True
            return
        if self._on_ready is not None:
            for model in loaded:
                self._on_ready(model, self.address)


def serve(server: EndingServer) -> None:
    """Run ``server`` until a signal ends it.

    Raises:
        PioError: The model could not be loaded.
        KeyboardInterrupt: SIGINT ended it.
    """
    server.run()
    if server.failure is not None:
        raise server.failure
    if server.exit_signal == signal.SIGINT:
        raise KeyboardInterrupt


def server_config(bounds: Bounds, app: ASGIApp) -> uvicorn.Config:
    """How uvicorn serves ``app``, wherever it listens."""
    return uvicorn.Config(
        app,
        http=bounded_protocol(bounds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(bounds.idle_s),
        timeout_graceful_shutdown=_LAST_WORDS_S,
        loop="asyncio" if sys.platform == "win32" else "auto",
    )
