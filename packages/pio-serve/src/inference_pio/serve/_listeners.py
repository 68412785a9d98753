"""What a server listens with: its address, encrypted or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

from inference_pio.serve._bind import bind
from inference_pio.serve._listener import Listener
from inference_pio.serve._protocol import protocol_maker
from inference_pio.serve._tls import tls_context

if TYPE_CHECKING:
    import socket

    from inference_pio.serve._settings import ServeSettings


class Listeners:
    """Has a server of uvicorn's take connections at the address of its settings.

    Args:
        settings: What the server is told.

    Raises:
        ConfigError: Certificate and key cannot be served under.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._context = None
        self._address = ""
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._context = tls_context(settings.tls_cert, settings.tls_key)

    @property
    def address(self) -> str:
        """Where connections are taken: ``http://host:port``, or ``https://``. For a server that has started."""
        return self._address

    async def open(self, server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        """Start ``server``.

        Args:
            server: One that is starting.
            sockets: To listen with, closed when the server ends; None for the settings' address.

        Raises:
            ConfigError: Nothing can listen there.
        """
        bound = bind(self._settings.host, self._settings.port) if sockets is None else sockets
        self._address = self._at(bound[0])
        await uvicorn.Server.startup(server, [])
        connect = protocol_maker(server.config, server.server_state)
        connections, bounds = server.server_state.connections, self._settings.bounds
        server.servers = [
            Listener(sock, self._context, connect, connections, bounds)  # type: ignore[misc]  # as uvicorn uses it
            for sock in bound
        ]

    def _at(self, sock: socket.socket) -> str:
        scheme = "http" if self._context is None else "https"
        host, port = self._settings.host, sock.getsockname()[1]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
