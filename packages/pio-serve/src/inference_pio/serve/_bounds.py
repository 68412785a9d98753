"""How large and how slow a request may be: headers and bodies are bounded before anything looks at them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference_pio.serve._context import context_of, header
from inference_pio.serve._errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._settings import Bounds

_CLOSE = {"connection": "close"}


class HeaderBounds:
    """Refuses large headers, and requests whose length is said twice.

    Args:
        app: What is further in.
        bounds: How large.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: 400 or 431.
        """
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._bounds.header_bytes:
            raise ApiError(
                431, f"the headers have more than {self._bounds.header_bytes} bytes", code="too_large", headers=_CLOSE
            )
        names = [name for name, _ in scope["headers"]]
        if b"transfer-encoding" in names and b"content-length" in names:
            # Two parties that read such a request differently see different requests (RFC 9112, section 6.3).
            raise ApiError(400, "Content-Length and Transfer-Encoding exclude each other", headers=_CLOSE)
        if names.count(b"content-length") > 1 or names.count(b"authorization") > 1:
            raise ApiError(400, "Content-Length and Authorization may come once only", headers=_CLOSE)
        await self._app(scope, receive, send)


class BodyBounds:
    """Reads the body, within bounds of size and time, into the request's context.

    Args:
        app: What is further in.
        bounds: How large and how slow.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: 400, 408 or 413.
        """
        length = header(scope, b"content-length")
        if length is not None and int(length) > self._bounds.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._bounds.body_s):
                context_of(scope).body = await self._read(receive)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not come within {self._bounds.body_s:g} s", code="timeout", headers=_CLOSE
            ) from None
        await self._app(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the connection ended within the body")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._bounds.body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body has more than {self._bounds.body_bytes} bytes", code="too_large", headers=_CLOSE
        )
