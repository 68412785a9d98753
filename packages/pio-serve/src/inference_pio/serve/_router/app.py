"""The application of a router: the routes of a server, answered by replicas, inside the same layers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from inference_pio.serve._app import create_app
from inference_pio.serve._errors import unavailable
from inference_pio.serve._json import json_response
from inference_pio.serve._metrics import CONTENT_TYPE, http_exposition
from inference_pio.serve._router.forward import Forwarded
from inference_pio.serve._router.metrics import merged, router_lines
from inference_pio.serve._router.upstream import ReplicaGoneError, ask
from inference_pio.serve._routes import ROUTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from inference_pio.serve._call import Call
    from inference_pio.serve._router.replicas import Replica
    from inference_pio.serve._router.state import RouterState

_OWN = frozenset({"/", "/dashboard", "/livez", "/openapi.json", "/static/{name}", "/version"})
"""Paths that need no model."""
SCRAPE_S = 5.0
"""For a replica to tell its metrics; one that takes longer is left out."""


class RouterStatus(msgspec.Struct, kw_only=True):
    """How the replicas are.

    Attributes:
        status: ``"ok"``: at least one answers.
        replicas: How many there are.
        ready: How many of them answer.
    """

    status: str = "ok"
    replicas: int
    ready: int


def router_app(router: RouterState) -> ASGIApp:
    """The ASGI application of a router."""

    async def forward(call: Call) -> ASGIApp:
        return Forwarded(router, call)

    async def health(_call: Call) -> Response:
        """At least one replica's engines answer."""
        return await _health(router)

    async def metrics(_call: Call) -> Response:
        """What the replicas count, each with its number, and what the router does."""
        return await _metrics(router)

    own = {"/health": health, "/metrics": metrics}
    routes = tuple(
        route if route.path in _OWN else replace(route, handler=own.get(route.path, forward)) for route in ROUTES
    )
    return create_app(router.server, routes)


async def _health(router: RouterState) -> Response:
    if router.server.draining:
        raise unavailable("the server is stopping", "stopping")
    replicas = router.replicas
    count = len(replicas.all)
    asked = await asyncio.gather(*(replicas.answers(replicas.all[place]) for place in replicas.ready))
    answering = sum(answer is True for answer in asked)
    if answering:
        return json_response(RouterStatus(replicas=count, ready=answering))
    if not asked:
        raise router.not_ready()
    raise unavailable(f"0 of {count} replicas answer", "engine_failed")


async def _metrics(router: RouterState) -> Response:
    replicas = router.replicas
    ready = replicas.ready
    texts = await asyncio.gather(*(_scrape(router, replicas.all[place]) for place in ready))
    found = {place: text for place, text in zip(ready, texts, strict=True) if text is not None}
    # Of requests, the router counts those of clients; replicas would count what it asks them for itself too.
    http = router.server.http
    own = {metric.name for metric, _ in http.families()}
    lines = [*merged(found, without=own), *http_exposition(http), *router_lines(router)]
    return Response("".join(f"{line}\n" for line in lines), headers={"content-type": CONTENT_TYPE})


async def _scrape(router: RouterState, replica: Replica) -> str | None:
    """What a replica counts; None if it does not tell in time."""
    credentials = [router.replicas.credentials]
    try:
        async with asyncio.timeout(SCRAPE_S), ask(replica.socket, "GET", b"/metrics", credentials) as reply:
            await reply.head()
            text = await reply.whole()
            return text.decode() if reply.status == 200 else None
    except (ReplicaGoneError, TimeoutError):
        return None
