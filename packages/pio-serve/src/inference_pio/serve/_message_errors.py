"""Errors as Anthropic's clients know them."""

from __future__ import annotations

from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from inference_pio.interfaces import PioError
from inference_pio.serve._errors import ApiError, as_api_error
from inference_pio.serve._json import json_response
from inference_pio.serve._outermost import log_failure
from inference_pio.serve._sse import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from starlette.types import ASGIApp

    from inference_pio.serve._call import Call

_TYPES = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
    }
)


class MessageErrorObject(msgspec.Struct):
    """The inner object.

    Attributes:
        type: Class of the error.
        message: What was wrong.
    """

    type: str
    message: str


class MessageErrorBody(msgspec.Struct, kw_only=True):
    """What an error reply holds.

    Attributes:
        type: ``"error"``.
        error: The error.
    """

    type: str = "error"
    error: MessageErrorObject


def message_error_frame(error: ApiError) -> bytes:
    """``error`` as one event."""
    return b"event: error\n" + frame(_body(error))


def in_message_shape(
    handler: Callable[[Call], Coroutine[Any, Any, ASGIApp]],
) -> Callable[[Call], Coroutine[Any, Any, ASGIApp]]:
    """``handler``, with the errors that it raises told as Anthropic's clients know them."""

    @wraps(handler)
    async def told(call: Call) -> ASGIApp:
        try:
            return await handler(call)
        except ApiError as error:
            known = error
        except PioError as error:
            known = as_api_error(error)
            if known.status >= 500:
                log_failure(call.request_id, error)
        return json_response(_body(known), known.status, known.headers)

    return told


def _body(error: ApiError) -> MessageErrorBody:
    other = "invalid_request_error" if error.status < 500 else "api_error"
    return MessageErrorBody(error=MessageErrorObject(_TYPES.get(error.status, other), error.message))
