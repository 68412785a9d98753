"""The outermost layer: every reply carries the request's id, and every failure becomes an error reply."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import PioError
from inference_pio.serve._context import CROWDED, RequestContext, attach, context_of, header
from inference_pio.serve._error_reply import error_reply, speaks_messages
from inference_pio.serve._errors import ApiError, as_api_error, internal_error, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from inference_pio.serve._http_metrics import HttpMetrics
    from inference_pio.serve._keys import KeyRing
    from inference_pio.serve._scopes import PlaceMap
    from inference_pio.serve._tracing import Tracing

LOG = logging.getLogger("inference_pio.serve")
ACCESS = logging.getLogger("inference_pio.serve.access")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Watch:
    """How requests are counted and traced.

    Attributes:
        metrics: Where they are counted.
        places: Names of routes.
        keys: Names of keys.
        tracing: What traces them; None if nothing does.
    """

    metrics: HttpMetrics
    places: PlaceMap
    keys: KeyRing
    tracing: Tracing | None = None

    def begin(self, context: RequestContext) -> None:
        """A request has come."""
        self.metrics.begun()
        if self.tracing is not None:
            context.trace = self.tracing.begin()

    def end(self, scope: Scope, status: int, seconds: float) -> None:
        """It is over."""
        context = context_of(scope)
        route, key = self.places.find(scope["path"]).name, self.keys.label(context.key_id)
        self.metrics.ended(handler=route, method=scope["method"], status=status, seconds=seconds, key=key)
        if self.tracing is not None and context.trace is not None:
            self.tracing.end(context.trace, scope, route=route, status=status, request_id=context.request_id, key=key)


class Outermost:
    """Names requests, answers failures, and writes the access log, which holds no query, prompt, answer or key.

    Args:
        app: What is further in.
        watch: How requests are counted and traced; None for not at all.
    """

    def __init__(self, app: ASGIApp, watch: Watch | None = None) -> None:
        self._app = app
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return  # neither websockets nor lifespan events are served
        given = header(scope, b"x-request-id")
        # Ids of clients go into logs, so only plain ones are taken over.
        request_id = given.decode() if given is not None and _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        context = RequestContext(request_id=request_id)
        attach(scope, context)
        named = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if speaks_messages(scope):
            named.append((b"request-id", request_id.encode()))
        started = time.perf_counter()
        status = 0

        def send_named(message: Message) -> Awaitable[None]:  # called for every token, so no coroutine of its own
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *named]
            return send(message)

        if self._watch is not None:
            self._watch.begin(context)
        try:
            _refuse_crowds(scope)
            await self._app(scope, receive, send_named)
        except ApiError as error:
            if status == 0:
                await error_reply(scope, error)(scope, receive, send_named)
        except asyncio.CancelledError:
            if status == 0:
                await error_reply(scope, internal_error())(scope, receive, send_named)
            raise
        except Exception as error:
            known = as_api_error(error) if isinstance(error, PioError) else internal_error()
            if known.status >= 500:
                log_failure(request_id, error)
            if status != 0:
                raise  # ends the connection, which is all that can still be said
            await error_reply(scope, known)(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - started
            if self._watch is not None:
                self._watch.end(scope, status, seconds)
            ACCESS.info(
                "%s %s %d %.1f ms %s key=%s",
                scope["method"],
                # As it came: decoded, it might begin a line of its own.
                scope["raw_path"].decode("latin-1")[:200] if status not in {401, 404} else "-",
                status,
                seconds * 1000,
                request_id,
                context.key_id,
            )


def _refuse_crowds(scope: Scope) -> None:
    if CROWDED in scope.get("state", ()):
        error = unavailable("as many connections are open as may; try again shortly", "too_many_connections")
        error.headers["connection"] = "close"
        raise error


def log_failure(request_id: str, error: BaseException) -> None:
    """Write where ``error`` came from; not its message, which may hold parts of a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-8:]))
    LOG.error("request %s failed: %s at %s", request_id, type(error).__name__, places)
