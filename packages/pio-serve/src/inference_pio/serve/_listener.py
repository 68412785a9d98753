"""Takes connections: what a loop's own server does, with a bound, and without losing its head where files run out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from inference_pio.serve._bind import BACKLOG
from inference_pio.serve._protocol import BEYOND

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Collection, Iterable

    from inference_pio.serve._settings import Bounds

LOG = logging.getLogger("inference_pio.serve")
_RETRY_S = 1.0
"""Before connections are taken again where the system had no file for one; asyncio's server would fill the log."""


class Listener:
    """Takes the connections of one socket, encrypted or not. Made within the loop that it runs in.

    A loop's own server tells nobody of connections in their TLS handshake. Here they count towards the bound. Where it
    is reached, the handshake that has taken longest gives way: an honest client's takes some round trips, while what is
    only held open ages.

    Args:
        sock: Bound; closed by :meth:`close`.
        context: What is encrypted with; None for not at all.
        connect: Makes the protocol of a connection.
        connections: Those whose handshake is over.
        bounds: How long and how many.

    Attributes:
        sockets: The one.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        connect: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        bounds: Bounds,
    ) -> None:
        sock.settimeout(0)
        sock.listen(BACKLOG)
        self.sockets = [sock]
        self._connect = connect
        self._connections = connections
        self._bounds = bounds
        self._encryption: dict[str, Any] = {}
        if context is not None:
            times = {"ssl_handshake_timeout": bounds.header_s, "ssl_shutdown_timeout": bounds.write_s}
            self._encryption = {"ssl": context, **times}
        self._handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._accepting = asyncio.ensure_future(self._accept(sock))

    def close(self) -> None:
        """Take no connections any more, and end those in their handshake."""
        self._end([self._accepting, *self._handshakes])

    async def wait_closed(self) -> None:
        """Return once that is done."""
        await asyncio.wait({self._accepting, *self._handshakes})

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listening)
                except ConnectionAbortedError:  # gone before it was taken
                    continue
                except OSError as error:
                    LOG.warning("no connection can be taken: %s", error.strerror)
                    await asyncio.sleep(_RETRY_S)
                    continue
                room = max(BEYOND, self._bounds.connections - len(self._connections))
                self._end(list(self._handshakes)[: max(0, len(self._handshakes) + 1 - room)])
                handshake = loop.create_task(self._begin(sock))
                self._handshakes[handshake] = None
                handshake.add_done_callback(self._handshakes.pop)
                await asyncio.sleep(0)  # connections that come without end must not keep others from their turn

    async def _begin(self, sock: socket.socket) -> None:
        """Hand a connection to its protocol, after the handshake if there is one."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._connect, sock, **self._encryption)
        except OSError as error:  # the client speaks no TLS, trusts another certificate, is gone or too slow
            LOG.debug("a connection failed: %s", error)

    @staticmethod
    def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
        # Not before they have begun, or nobody would close their sockets.
        loop = asyncio.get_running_loop()
        for task in tasks:
            loop.call_soon(task.cancel)
