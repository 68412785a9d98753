"""Asks a server over its admin socket."""

from __future__ import annotations

import http.client
import os
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from inference_pio.interfaces import InvalidRequestError, ModelNotFoundError, PioError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 8 * 1024 * 1024


class AdminError(PioError):
    """A server that cannot be reached over its admin socket, or refuses."""


class AdminClient:
    """One server.

    Args:
        path: Its admin socket.
        timeout_s: Seconds to wait for an answer; None for as long as it takes.
    """

    def __init__(self, path: Path, timeout_s: float | None = None) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def get(self, *parts: str) -> dict[str, Any]:
        """What the server tells at a path.

        Args:
            parts: Of the path; slashes within a part are part of it.

        Raises:
            PioError: It cannot be reached, or refuses.
        """
        return self._ask("GET", parts, "")

    def post(self, *parts: str, query: str = "") -> dict[str, Any]:
        """What the server answers when told to do something.

        Args:
            parts: As in :meth:`get`.
            query: What follows the path.

        Raises:
            PioError: It cannot be reached, or refuses.
        """
        return self._ask("POST", parts, query)

    def _ask(self, method: str, parts: tuple[str, ...], query: str) -> dict[str, Any]:
        connection = _UnixConnection(self._path, self._timeout_s)
        path = "".join(f"/{quote(part, safe='')}" for part in parts) + (f"?{query}" if query else "")
        try:
            connection.request(method, path, headers={"content-type": "application/json"})
            reply = connection.getresponse()
            raw = reply.read(_MAX_BYTES)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AdminError(
                f"no server listens at {str(self._path)!r}", hint="give the path of its --admin-socket"
            ) from error
        except PermissionError as error:
            raise AdminError(
                f"{str(self._path)!r} may not be opened", hint="only the user who started the server may"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"{str(self._path)!r} does not answer: {error}", hint="is it an admin socket?") from error
        finally:
            connection.close()
        return _read(self._path, reply.status, raw)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _read(path: Path, status: int, raw: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(raw, type=dict[str, Any])
        message = None if status < 400 else str(found["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise AdminError(f"{str(path)!r} answered {status} without JSON", hint="is it an admin socket?") from error
    if message is None:
        return found
    if status == 404:
        raise ModelNotFoundError(message)
    if status == 400:
        raise InvalidRequestError(message)
    raise AdminError(message, hint="see pio admin --help" if status == 405 else None)
