"""By which names a server may be called: what a page on another site can point at us is not one of them."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from inference_pio.serve._context import header
from inference_pio.serve._errors import ApiError
from inference_pio.serve._settings import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to


class HostCheck:
    """Refuses requests whose ``Host`` is not on the list, and those that a page of another origin makes.

    A name that resolves to this machine brings a browser here whoever owns it (DNS rebinding), so the address alone
    says nothing; an address in the header itself is safe. A server at every address of a machine cannot know its names:
    behind keys, it takes any unless some are listed.

    Args:
        app: What is further in.
        host: Address that the server listens at.
        allowed: More names; ``"*"`` allows any.
        has_keys: Whether keys are asked for.
    """

    def __init__(self, app: ASGIApp, *, host: str, allowed: tuple[str, ...], has_keys: bool) -> None:
        self._app = app
        names = {name.lower() for name in allowed}
        if is_loopback(host):
            names |= {"localhost", "127.0.0.1", "::1"}
        self._any = ANY in names or (host in _ANY_ADDRESS and has_keys and not names)
        self._names = frozenset(names | {host.strip("[]").lower()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: 421, the name is not one of ours; 403, a page of another origin asks.
        """
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1:
            raise _refused(400, "there must be one Host header")
        host = hosts[0].decode("latin-1") if hosts else ""
        if not self._any and not self._is_ours(_name_of(host)):
            raise _refused(421, "the Host header names another server; the server's --allowed-host adds names")
        origin = header(scope, b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2].lower() != host.lower():
            raise _refused(403, "pages of other origins may not ask this server")
        await self._app(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _refused(status: int, message: str) -> ApiError:
    return ApiError(status, message, code="host_not_allowed", headers={"connection": "close"})


def _name_of(host: str) -> str:
    """A host without its port, and without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
