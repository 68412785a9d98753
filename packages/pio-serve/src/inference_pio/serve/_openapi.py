"""The OpenAPI document, made from the table of routes and the types on the wire."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from inference_pio.serve._anthropic.errors import MessageErrorBody
from inference_pio.serve._auth import OPEN_PATHS
from inference_pio.serve._error_reply import speaks_messages
from inference_pio.serve._errors import ErrorBody
from inference_pio.serve._json import encode, json_response

if TYPE_CHECKING:
    from starlette.responses import Response

    from inference_pio.serve._call import Call
    from inference_pio.serve._routes import ApiRoute

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request can never be served as it stands.",
    "401": "No key was given, or a wrong one.",
    "403": "The key may not ask this, or a page of another origin asked.",
    "404": "There is no such model or path.",
    "405": "The path takes another method.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "421": "The Host header names another server.",
    "429": "Too much at once: try again after Retry-After.",
    "431": "The headers are too large.",
    "500": "The server failed on this request.",
    "503": "The model is loading, or the server is stopping: try again after Retry-After.",
}
_TEXT = {"type": "string"}
_SECONDS = {"type": "integer", "minimum": 1}
_HEADERS: dict[str, dict[str, Any]] = {
    "401": {"www-authenticate": _TEXT},
    "405": {"allow": _TEXT},
    "429": {"retry-after": _SECONDS},
    "503": {"retry-after": _SECONDS},
}
_UNREAD = frozenset({"400", "431"})
"""Also told of what never became a request, and so has no id."""


async def show_openapi(_call: Call) -> Response:
    """``GET /openapi.json``."""
    from inference_pio.serve._routes import ROUTES  # the table has this handler in it

    return json_response(openapi_document(ROUTES))


@cache
def openapi_document(routes: tuple[ApiRoute, ...]) -> dict[str, Any]:
    """The document of ``routes``, as OpenAPI 3.1."""
    types: set[type[msgspec.Struct]] = {ErrorBody, MessageErrorBody}
    types |= {kind for route in routes for kind in (route.request, route.reply) if kind is not None}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    by_type = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})
        operations[route.method.lower()] = _operation(route, by_type)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference-PIO",
            "version": version("pio-serve"),
            "description": "A language model behind the endpoints of OpenAI's API.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }
    plain: dict[str, Any] = msgspec.json.decode(encode(document))
    return plain


def _operation(route: ApiRoute, by_type: dict[type[msgspec.Struct], dict[str, Any]]) -> dict[str, Any]:
    answers: dict[str, Any] = {kind: {} for kind in route.media}
    if route.reply is not None:
        answers["application/json"] = {"schema": by_type[route.reply]}
    if route.streams:
        answers["text/event-stream"] = {}  # no schema of OpenAPI 3.1 says what events are
    of_messages = speaks_messages({"path": route.path})
    error = {"application/json": {"schema": by_type[MessageErrorBody if of_messages else ErrorBody]}}
    ids = ["x-request-id", *(["request-id"] if of_messages else [])]
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "responses": {
            status: {"description": text, "headers": _headers(status, ids), "content": content}
            for status, text, content in (
                ("200", "As asked.", answers),
                *((status, text, error) for status, text in _ERRORS.items()),
            )
        },
    }
    if route.request is not None:
        schema = by_type[route.request]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    names = _PARAMETER.findall(route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.path in OPEN_PATHS:
        operation["security"] = []
    return operation


def _headers(status: str, ids: list[str]) -> dict[str, Any]:
    """Those that replies of this status have, with those that name the request."""
    named = {name: {"required": status not in _UNREAD, "schema": _TEXT} for name in ids}
    return named | {name: {"required": True, "schema": schema} for name, schema in _HEADERS.get(status, {}).items()}


def _operation_id(route: ApiRoute) -> str:
    words = re.sub(r"\W+", "_", route.path).strip("_") or "root"
    return f"{route.method.lower()}_{words}"
