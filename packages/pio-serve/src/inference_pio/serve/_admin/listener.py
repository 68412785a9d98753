"""The unix socket for whoever runs a server: only its user can open it, from the moment that it is there."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.server import ServerState as UvicornState

from inference_pio.interfaces import ConfigError, UnsupportedError
from inference_pio.serve._listener import Listener
from inference_pio.serve._protocol import bounded_protocol, protocol_maker

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from inference_pio.serve._settings import Bounds

MAX_PATH_BYTES = 90
"""The system takes 107 bytes (unix(7)), of which the folder that the socket is made in takes some."""
_LAST_WORDS_S = 1.0


class AdminSocket:
    """Serves an application on a unix socket.

    Args:
        path: Where the socket is to be.
        app: What is served.
        bounds: Of connections and requests.
    """

    def __init__(self, path: Path, app: ASGIApp, bounds: Bounds) -> None:
        self._path = path
        self._app = app
        self._bounds = bounds
        self._state = UvicornState()
        self._server: Listener | None = None
        self._identity: tuple[int, int] | None = None

    async def open(self) -> None:
        """Take connections.

        Raises:
            ConfigError: Something is in the way, or the folder is not there or not writable.
            UnsupportedError: This system has no unix sockets.
        """
        sock = bind_private(self._path)
        found = self._path.stat()
        self._identity = found.st_dev, found.st_ino
        config = uvicorn.Config(
            self._app,
            http=bounded_protocol(self._bounds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(self._bounds.idle_s),
        )
        config.load()
        connect = protocol_maker(config, self._state)
        self._server = Listener(sock, None, connect, self._state.connections, self._bounds)

    async def close(self) -> None:
        """Take the socket away, and end connections once they were answered. Harmless when called twice."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        await server.wait_closed()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=_LAST_WORDS_S)
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) == self._identity:  # else it is somebody else's by now
            self._path.unlink()


def bind_private(path: Path) -> socket.socket:
    """A socket at ``path`` that only this user may open (mode 0600); one that nobody listens at any more gives way.

    It is made within a folder that nobody else can enter and moved from there, for a moment between binding and
    changing its mode would be a moment too long.

    Raises:
        ConfigError: Something is in the way, or the folder is not there or not writable.
        UnsupportedError: This system has no unix sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise UnsupportedError("this system has no unix sockets", hint="leave --admin-socket out")
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"the path of the admin socket {str(path)!r} has more than {MAX_PATH_BYTES} bytes",
            hint="take a shorter one",
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        with tempfile.TemporaryDirectory(prefix=".pio-", dir=path.parent) as private:  # mode 0700
            made = Path(private, "s")
            sock.bind(str(made))
            made.chmod(0o600)
            sock.listen()
            made.rename(path)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"the admin socket {str(path)!r} cannot be made: {error.strerror or error}",
            hint="give a path in a folder of yours with --admin-socket",
        ) from error
    except BaseException:  # a refusal, or Ctrl-C; it goes on up
        sock.close()
        raise
    return sock


def _clear(path: Path) -> None:
    """Remove a socket that a server left behind when it was killed.

    Raises:
        ConfigError: Something else is there, or a server listens.
        OSError: It cannot be removed.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{str(path)!r} is there, and is no socket", hint="give another path for the admin socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"a server listens at {str(path)!r} already", hint="give another path for the admin socket")
