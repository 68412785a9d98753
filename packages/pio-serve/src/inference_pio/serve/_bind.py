"""Sockets at the address that a server is told, or in one sentence why there are none."""

from __future__ import annotations

import errno
import os
import socket

from inference_pio.interfaces import ConfigError

BACKLOG = 2048
"""Connections that the system keeps until they are taken."""
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def bind(host: str, port: int) -> list[socket.socket]:
    """Listen at ``host``: a socket for each of its addresses that this machine has.

    Args:
        host: A name or an address.
        port: 0 takes a free one.

    Raises:
        ConfigError: Nothing can listen there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no name"
        raise ConfigError(
            f"the host {host!r} has no address: {said}", hint="give one with --host, such as 127.0.0.1"
        ) from error
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, kind, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(_listen(family, kind, address))
        except OSError as error:
            if error.errno in _NOT_HERE:  # such as localhost's second address where IPv6 is turned off
                missing = error
                continue
            for sock in sockets:
                sock.close()
            raise _refusal(host, port, error) from error
    if not sockets:
        assert missing is not None
        raise _refusal(host, port, missing) from missing
    return sockets


def _listen(
    family: socket.AddressFamily, kind: socket.SocketKind, address: tuple[str | int, ...] | tuple[int, bytes]
) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        if os.name == "posix":  # elsewhere it would let two programs listen at one address
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # an address for IPv4 is asked for by itself
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _refusal(host: str, port: int, error: OSError) -> ConfigError:
    match error.errno:
        case errno.EADDRINUSE:
            return ConfigError(
                f"port {port} of {host} is taken by another program",
                hint="give another one with --port; 0 takes one that is free",
            )
        case errno.EACCES | errno.EPERM:
            return ConfigError(
                f"port {port} of {host} is not for this user: {error.strerror}",
                hint="give one above 1023 with --port",
            )
        case errno.EADDRNOTAVAIL:
            return ConfigError(
                f"{host} is no address of this machine",
                hint="give one of its own with --host, or 0.0.0.0 for all of them",
            )
        case _:
            return ConfigError(
                f"nothing can listen at port {port} of {host}: {error.strerror or error}",
                hint="give others with --host and --port",
            )
