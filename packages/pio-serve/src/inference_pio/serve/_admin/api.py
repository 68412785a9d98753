"""What whoever runs a server may ask of it, over its admin socket alone: these routes are in no table of the others."""

from __future__ import annotations

import logging
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from inference_pio.interfaces import ConfigError
from inference_pio.serve._admin.schema import (
    AdminModel,
    AdminModels,
    AdminRequest,
    AdminRequests,
    Cancelled,
    Draining,
    Keys,
)
from inference_pio.serve._app import build_router
from inference_pio.serve._bounds import BodyBounds, HeaderBounds
from inference_pio.serve._context import context_of
from inference_pio.serve._errors import ApiError, invalid, not_found
from inference_pio.serve._json import json_response
from inference_pio.serve._keys import KeyRing
from inference_pio.serve._outermost import Outermost
from inference_pio.serve._routes import ApiRoute

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._call import Call
    from inference_pio.serve._models.pooled_model import PooledModel
    from inference_pio.serve._server_state import ServerState

ADMIN = "admin"
"""Who asks over the admin socket."""
LOG = logging.getLogger("inference_pio.serve")


def create_admin_app(server: ServerState) -> ASGIApp:
    """The ASGI application of a server's admin socket. Who may open the socket may ask everything.

    Args:
        server: What all requests share.
    """
    bounds = server.settings.bounds
    return Outermost(_AsAdmin(HeaderBounds(BodyBounds(build_router(server, ADMIN_ROUTES), bounds), bounds)))


class _AsAdmin:
    """Has requests stand in the log as those of the admin socket."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context_of(scope).key_id = ADMIN
        await self._app(scope, receive, send)


async def show_models(call: Call) -> Response:
    """``GET /models``."""
    pool = call.server.models
    data = [_model(call, model) for model in pool.named()]
    return json_response(AdminModels(data=data, memory_bytes=pool.used, memory_budget=pool.budget))


async def load_model(call: Call) -> Response:
    """``POST /models/{model}/load``: answered once it is loaded, tried at once also where that has just failed.

    Raises:
        ApiError: There is none of this name, or it cannot be loaded now.
    """
    name = call.path_params["model"]
    call.server.models.retry_now(name)
    await call.model(name)
    return json_response(_model(call, call.server.models.find(name), leases=-1))


async def unload_model(call: Call) -> Response:
    """``POST /models/{model}/unload``: answered once its memory is free; with ``?wait`` requests may end first.

    Raises:
        ApiError: There is none of this name; 409, requests use it.
    """
    name = call.path_params["model"]
    if await call.server.models.unload(name, wait=_flag(call, "wait")):
        LOG.info("model %s is unloaded: it was asked for", name)
    return json_response(_model(call, call.server.models.find(name)))


async def show_requests(call: Call) -> Response:
    """``GET /requests``."""
    now = time.monotonic()
    data = [
        AdminRequest(
            id=request.request_id,
            key=request.key_id,
            path=request.path,
            model=request.model,
            age_s=round(now - request.started, 3),
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.tokens,
        )
        for request in call.server.requests
    ]
    return json_response(AdminRequests(data=data))


async def cancel_request(call: Call) -> Response:
    """``POST /requests/{id}/cancel``: its client is told so.

    Raises:
        ApiError: 404, none of this id is open.
    """
    request_id = call.path_params["id"]
    cancelled = call.server.requests.cancel(request_id)
    if not cancelled:
        raise not_found(f"there is no open request {request_id!r:.200}", "request_not_found", param="id")
    LOG.info("request %s is cancelled: it was asked for", request_id)
    return json_response(Cancelled(cancelled=cancelled))


async def drain(call: Call) -> Response:
    """``POST /drain``: as SIGTERM; new requests get 503, and the server ends with those that run."""
    LOG.info("the server stops: it was asked to")
    call.server.draining = True
    return json_response(Draining(open_requests=call.server.open))


async def reload_keys(call: Call) -> Response:
    """``POST /keys/reload``: from here on the keys of the key file open the server, and no others.

    Raises:
        ApiError: 409, it was started without a file; 400, the file holds none, and the keys are as before.
    """
    settings = call.server.settings
    if settings.read_keys is None:
        raise ApiError(409, "the server was started without a key file", code="no_key_file")
    try:
        ring = settings.read_keys()
    except ConfigError as error:
        raise invalid(f"the keys are as they were: {error}", code="bad_key_file") from error
    settings.keys.become(ring)
    LOG.info("keys were read anew: %d", len(ring))
    return json_response(Keys(keys=len(settings.keys)))


async def show_settings(call: Call) -> Response:
    """``GET /settings``: what the server was told; of the keys only how many there are."""
    return json_response(_plain(call.server.settings))


ADMIN_ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute(method="GET", path="/models", handler=show_models, summary="The models.", reply=AdminModels),
    ApiRoute(
        method="POST", path="/models/{model:path}/load", handler=load_model, summary="Load a model.", reply=AdminModel
    ),
    ApiRoute(
        method="POST",
        path="/models/{model:path}/unload",
        handler=unload_model,
        summary="Unload a model.",
        reply=AdminModel,
    ),
    ApiRoute(method="GET", path="/requests", handler=show_requests, summary="Open requests.", reply=AdminRequests),
    ApiRoute(
        method="POST",
        path="/requests/{id}/cancel",
        handler=cancel_request,
        summary="Cancel a request.",
        reply=Cancelled,
    ),
    ApiRoute(method="POST", path="/drain", handler=drain, summary="Stop once requests have ended.", reply=Draining),
    ApiRoute(method="POST", path="/keys/reload", handler=reload_keys, summary="Read the keys anew.", reply=Keys),
    ApiRoute(method="GET", path="/settings", handler=show_settings, summary="The settings.", reply=None),
)


def _model(call: Call, model: PooledModel, leases: int = 0) -> AdminModel:
    wait = call.server.models.retry_s(model)
    return AdminModel(
        id=model.name,
        state=model.state.value,
        memory_bytes=model.nbytes,
        open_requests=model.leases + leases,
        idle_s=None if model.last_used_at is None else round(max(0.0, time.time() - model.last_used_at), 3),
        last_used=model.last_used_at,
        max_model_len=model.max_model_len,
        loads=model.loads,
        unloads=model.unloads,
        load_failures=model.load_failures,
        load_s=round(model.load_s, 3),
        problem=None if model.refusal is None else model.refusal.message,
        retry_s=wait,
    )


def _flag(call: Call, name: str) -> bool:
    """Whether the query has ``name``, alone or with a word for yes.

    Raises:
        ApiError: It holds something else.
    """
    given = dict(parse_qsl(call.query.decode("latin-1"), keep_blank_values=True))
    value = given.pop(name, "0").lower()
    if given or value not in {"", "1", "true", "0", "false"}:
        raise invalid(f"the query may hold {name!r} or '{name}=true' alone", name)
    return value in {"", "1", "true"}


def _plain(value: object) -> object:
    """Settings as JSON holds them, without what must not be told."""
    match value:
        case KeyRing():
            return len(value)
        case Path():
            return str(value)
        case frozenset():
            return sorted(value)
        case _ if is_dataclass(value):
            shown = [field.name for field in fields(value) if field.repr]
            return {name: _plain(getattr(value, name)) for name in shown}
        case _:
            return value
