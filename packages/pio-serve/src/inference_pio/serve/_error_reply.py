"""The one place that makes error replies: each family of endpoints has the shape that its clients know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.serve._anthropic.errors import message_error_body
from inference_pio.serve._context import context_of
from inference_pio.serve._errors import error_body
from inference_pio.serve._json import json_response

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Scope

    from inference_pio.serve._errors import ApiError

_MESSAGES = "/v1/messages"


def error_reply(scope: Scope, error: ApiError) -> Response:
    """The reply that tells ``error``, wherever it was raised, and whether or not the path is routed."""
    if speaks_messages(scope):
        body: object = message_error_body(error, context_of(scope).request_id)
    else:
        body = error_body(error)
    return json_response(body, error.status, error.headers)


def speaks_messages(scope: Scope) -> bool:
    """Whether Anthropic's clients ask at this path."""
    path: str = scope["path"]
    return path.startswith(_MESSAGES) and path[len(_MESSAGES) :][:1] in {"", "/"}
