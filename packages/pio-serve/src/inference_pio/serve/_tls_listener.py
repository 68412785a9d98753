"""Takes encrypted connections: handshakes are bounded in time and number, and none outlives the listener."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from inference_pio.serve._protocol import BEYOND

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Collection, Iterable

    from inference_pio.serve._settings import Bounds

LOG = logging.getLogger("inference_pio.serve")
_RETRY_S = 1.0
"""Before connections are taken again where the system had none to give, as asyncio waits."""


class TlsListener:
    """What a loop's own server would do with a socket and a context, which counts nobody before the handshake is over.

    Connections in their handshake count towards the bound. Where it is reached, the handshake that has taken longest
    gives way: an honest client's takes some round trips, while what is only held open ages.

    Args:
        sock: Listens; closed by :meth:`close`.
        context: What is encrypted with.
        connect: Makes the protocol of a connection.
        connections: Those whose handshake is over.
        bounds: How long and how many.

    Attributes:
        sockets: The one.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        connect: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        bounds: Bounds,
    ) -> None:
        sock.settimeout(0)
        self.sockets = [sock]
        self._context = context
        self._connect = connect
        self._connections = connections
        self._bounds = bounds
        self._handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._accepting = asyncio.ensure_future(self._accept(sock))

    def close(self) -> None:
        """Take no connections any more, and end those in their handshake."""
        self._accepting.cancel()
        self._end(self._handshakes)

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
                handshake = loop.create_task(self._shake_hands(sock))
                self._handshakes[handshake] = None
                handshake.add_done_callback(self._handshakes.pop)
                await asyncio.sleep(0)  # connections that come without end must not keep others from their turn

    async def _shake_hands(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._connect,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._bounds.header_s,
                ssl_shutdown_timeout=self._bounds.write_s,
            )
        except OSError as error:  # the client speaks no TLS, trusts another certificate, is gone or too slow
            LOG.debug("a handshake failed: %s", error)

    @staticmethod
    def _end(handshakes: Iterable[asyncio.Task[None]]) -> None:
        # Not before they have begun, or nobody would close their sockets.
        loop = asyncio.get_running_loop()
        for handshake in handshakes:
            loop.call_soon(handshake.cancel)
