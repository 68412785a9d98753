"""Errors as Anthropic's clients know them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from inference_pio.serve._errors import ApiError

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
        request_id: Of the request, as in the reply's headers.
    """

    type: str = "error"
    error: MessageErrorObject
    request_id: str


def message_error_body(error: ApiError, request_id: str) -> MessageErrorBody:
    """The body of a reply, or of an event."""
    other = "invalid_request_error" if error.status < 500 else "api_error"
    return MessageErrorBody(
        error=MessageErrorObject(_TYPES.get(error.status, other), error.message), request_id=request_id
    )
