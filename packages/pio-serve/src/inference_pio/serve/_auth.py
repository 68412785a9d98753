"""Who may ask what: every path but one needs a key that may ask there, whatever is or will be routed."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from inference_pio.serve._context import context_of, header
from inference_pio.serve._errors import ApiError
from inference_pio.serve._scopes import ALL, ANY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._keys import KeyGrant, KeyRing
    from inference_pio.serve._scopes import PlaceMap

OPEN_PATHS = frozenset({"/livez"})
"""Paths that need no key: whether the process lives is all they tell."""

PAGES = frozenset({"/", "/dashboard"})
PAGE_FILES = "/static/"


class KeyCheck:
    """Refuses requests without a key of the ring that may ask there, before anything is routed or read.

    Keys come as ``Authorization: Bearer KEY`` or, from Anthropic's clients, as ``x-api-key: KEY``. A browser that opens
    a page can send neither, so pages take the key as the password of HTTP Basic too. Nothing else does: browsers add
    such passwords to whatever is asked of a server, also by other sites, and pages are files that tell and change
    nothing.

    Args:
        app: What is further in.
        keys: The ring; an empty one lets everyone in.
        places: Which scope each path needs.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, places: PlaceMap) -> None:
        self._app = app
        self._keys = keys
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: 401, there is no such key; 403, it may not ask this.
        """
        if self._keys and scope["path"] not in OPEN_PATHS:
            grant = self._check(scope)
            context_of(scope).key_id = grant.id
            _check_scope(grant, self._places.find(scope["path"]).scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> KeyGrant:
        key = _given_key(scope)
        grant = None if key is None else self._keys.find(key)
        if grant is None:
            challenge = 'Basic realm="API key as password", charset="UTF-8"' if _is_page(scope) else "Bearer"
            raise ApiError(
                401,
                "no API key was given: send 'Authorization: Bearer KEY'" if key is None else "the API key is wrong",
                kind="authentication_error",
                code="missing_api_key" if key is None else "invalid_api_key",
                headers={"www-authenticate": challenge, "connection": "close"},
            )
        return grant


def _check_scope(grant: KeyGrant, needed: str) -> None:
    if grant.scopes is None or needed == ANY or needed in grant.scopes:
        return
    may = ", ".join(sorted(grant.scopes))
    missing = "has no scope for this path" if needed == ALL else f"does not have the scope {needed!r}"
    raise ApiError(
        403,
        f"this API key {missing}; it has {may}",
        kind="permission_error",
        code="insufficient_scope",
        headers={"www-authenticate": 'Bearer error="insufficient_scope"', "connection": "close"},
    )


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
