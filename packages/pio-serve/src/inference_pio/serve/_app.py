"""The application: the routes, inside the layers that guard them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route, Router

from inference_pio.serve._auth import KeyCheck
from inference_pio.serve._bounds import BodyBounds, HeaderBounds
from inference_pio.serve._endpoint import Endpoint
from inference_pio.serve._errors import ApiError, not_found
from inference_pio.serve._hosts import HostCheck
from inference_pio.serve._json import check_media_type
from inference_pio.serve._outermost import Outermost, Watch
from inference_pio.serve._routes import ROUTES
from inference_pio.serve._scopes import PlaceMap

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._routes import ApiRoute
    from inference_pio.serve._server_state import ServerState


def create_app(server: ServerState, routes: tuple[ApiRoute, ...] = ROUTES) -> ASGIApp:
    """The ASGI application of a server.

    From the outside in: ids and errors, names of the host, headers, keys, bodies, routes. Nothing is read from a client
    that has no key but its headers.

    Args:
        server: What all requests share.
        routes: What is served.
    """
    settings, places = server.settings, PlaceMap(routes)
    app: ASGIApp = build_router(server, routes)
    app = BodyBounds(app, settings.bounds)
    app = KeyCheck(app, settings.keys, places)
    app = HeaderBounds(app, settings.bounds)
    app = HostCheck(app, host=settings.host, allowed=settings.allowed_hosts, has_keys=bool(settings.keys))
    return Outermost(app, Watch(server.http, places, settings.keys, server.tracing))


def build_router(server: ServerState, routes: tuple[ApiRoute, ...]) -> Router:
    """The routes alone, without what guards them."""
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for route in routes:
        endpoint = Endpoint(route.handler, server, costs=route.costs)
        by_path.setdefault(route.path, {})[route.method] = endpoint
    return Router(
        [Route(path, _ByMethod(endpoints)) for path, endpoints in by_path.items()],
        redirect_slashes=False,
        default=_not_routed,
    )


class _ByMethod:
    """The endpoints of one path."""

    def __init__(self, endpoints: dict[str, ASGIApp]) -> None:
        self._endpoints = endpoints
        self._allowed = ", ".join(sorted(endpoints))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        endpoint = self._endpoints.get(method)
        if endpoint is None:
            raise ApiError(
                405,
                f"this path takes {self._allowed}, not {scope['method']}",
                code="method_not_allowed",
                headers={"allow": self._allowed},
            )
        if method == "POST":
            check_media_type(scope)
        await endpoint(scope, receive, send)


async def _not_routed(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise not_found("there is nothing at this path", "not_found")
