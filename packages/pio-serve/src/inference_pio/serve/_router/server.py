"""The life of a router: listen at once, start replicas, hand out, and on a signal let them finish."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import uvicorn

from inference_pio.interfaces import PioError
from inference_pio.serve._endpoint import end_task
from inference_pio.serve._lifecycle import server_config
from inference_pio.serve._listeners import Listeners
from inference_pio.serve._router.app import router_app
from inference_pio.serve._router.balance import Balance
from inference_pio.serve._router.replicas import Replicas
from inference_pio.serve._router.state import RouterState
from inference_pio.serve._server_state import ServerState

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from types import FrameType

    from inference_pio.serve._router.replicas import Replica
    from inference_pio.serve._router.reports import Loaded, Order
    from inference_pio.serve._settings import ServeSettings


class RouterServer(uvicorn.Server):
    """Uvicorn's server, that has others answer.

    Args:
        settings: What it is told; all of it but what is of models.
        cpus: Processors for each replica, None for all; their number is that of the replicas.
        order: Makes the order of a replica in one of its lives from the key that it shall let the router in by.
        balance: Who is given what; None for the usual.
        on_ready: Called once all serve, with what they have loaded and the address.
        on_listening: Called once connections are taken, with the address.

    Attributes:
        router: What all requests share.
        failure: Why it could not listen, or a replica not begin to serve, if so.
        exit_signal: The signal that ended it, if one did.
    """

    def __init__(
        self,
        settings: ServeSettings,
        cpus: Sequence[list[int] | None],
        order: Callable[[Replica, str], Order],
        *,
        balance: Balance | None = None,
        on_ready: Callable[[list[Loaded], str], None] | None = None,
        on_listening: Callable[[str], None] | None = None,
    ) -> None:
        state = ServerState(settings)
        chosen = Balance(len(cpus)) if balance is None else balance
        replicas = Replicas(
            cpus,
            order,
            on_spent=state.spend,
            on_gone=chosen.forget,
            open_of=lambda place: chosen.loads[place].open,
            drain_s=settings.drain_s,
        )
        self.router = RouterState(state, replicas, chosen)
        super().__init__(server_config(settings.bounds, router_app(self.router)))
        self.failure: BaseException | None = None
        self.exit_signal: int | None = None
        self._settings = settings
        self._listeners = Listeners(settings)
        self._on_ready = on_ready
        self._on_listening = on_listening
        self._starting: asyncio.Task[None] | None = None
        self._drain_until: float | None = None

    @property
    def address(self) -> str:
        """Where it listens: ``http://host:port``, or ``https://``."""
        return self._listeners.address

    def drain(self) -> None:
        """Take no new requests, and stop once those that run have ended, or their time is over. From any thread."""
        self.router.server.draining = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """The first signal drains, the second stops at once."""
        self.exit_signal = sig
        if self.router.server.draining:
            self.should_exit = self.force_exit = True
        self.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and begin to start the replicas."""
        try:
            await self._listeners.open(self, sockets)
        except PioError as error:
            self.failure, self.should_exit = error, True
            return
        if self._on_listening is not None:
            self._on_listening(self.address)
        self._starting = asyncio.ensure_future(self._start())

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop now."""
        server = self.router.server
        if server.draining and not self.should_exit:
            now = time.monotonic()
            if self._drain_until is None:
                self._drain_until = now + self._settings.drain_s
            if server.open == 0:
                self.should_exit = True
            elif now >= self._drain_until:
                await self._stop()
                self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - their listeners close them
        """Stop taking connections, end the replicas, let open replies end."""
        await self._stop()
        await super().shutdown()

    async def _start(self) -> None:
        try:
            await self.router.replicas.start()
        except Exception as error:  # noqa: BLE001 - raised again by serve(), once the connections are closed
            self.failure = error
            self.should_exit = True
            return
        self.router.loading = False
        if self._on_ready is not None:
            self._on_ready(self.router.replicas.all[0].loaded, self.address)

    async def _stop(self) -> None:
        if self._starting is not None:
            await end_task(self._starting)
        await self.router.replicas.stop(at_once=self.force_exit)
