"""Who may ask: every path but one needs a key, whatever is or will be routed there."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from inference_pio.serve._context import context_of, header
from inference_pio.serve._errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._keys import KeyRing

OPEN_PATHS = frozenset({"/livez"})
"""Paths that need no key: whether the process lives is all they tell."""

PAGES = frozenset({"/", "/dashboard"})
PAGE_FILES = "/static/"


class KeyCheck:
    """Refuses requests without a key of the ring, before anything is routed or read.

    Keys come as ``Authorization: Bearer KEY`` or, from Anthropic's clients, as ``x-api-key: KEY``. A browser that opens
    a page can send neither, so pages take the key as the password of HTTP Basic too. Nothing else does: browsers add
    such passwords to whatever is asked of a server, also by other sites, and pages are files that tell and change
    nothing.

    Args:
        app: What is further in.
        keys: The ring; an empty one lets everyone in.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: 401.
        """
        if self._keys and scope["path"] not in OPEN_PATHS:
            context_of(scope).key_id = self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> str:
        key = _given_key(scope)
        key_id = None if key is None else self._keys.key_id(key)
        if key_id is None:
            challenge = 'Basic realm="API key as password", charset="UTF-8"' if _is_page(scope) else "Bearer"
            raise ApiError(
                401,
                "no API key was given: send 'Authorization: Bearer KEY'" if key is None else "the API key is wrong",
                kind="authentication_error",
                code="missing_api_key" if key is None else "invalid_api_key",
                headers={"www-authenticate": challenge, "connection": "close"},
            )
        return key_id


def _given_key(scope: Scope) -> bytes | None:
    authorization = header(scope, b"authorization")
    if authorization is None:
        return header(scope, b"x-api-key")
    scheme, _, key = authorization.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return key.strip()
        case b"basic" if _is_page(scope):
            return _password(key)
    return None


def _is_page(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] in {"GET", "HEAD"} and (path in PAGES or path.startswith(PAGE_FILES))


def _password(credentials: bytes) -> bytes | None:
    """That of HTTP Basic; the name before it may be any."""
    try:
        _, colon, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return password if colon else None
