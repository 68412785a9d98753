"""Errors as OpenAI's clients know them: a status that says whether to try again, and a nested object."""

from __future__ import annotations

import re
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from inference_pio.interfaces import (
    DoesNotFitError,
    EngineError,
    InvalidRequestError,
    PioError,
    PromptTooLongError,
    QueueFullError,
    StructureError,
    TemplateError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PARAM = re.compile(r"([a-z_]+)(?:\[[^]]*\])? must ")
# The first that fits counts, so the more special ones come first.
_CODES: Mapping[type[PioError], str | None] = MappingProxyType(
    {
        PromptTooLongError: "context_length_exceeded",
        DoesNotFitError: "does_not_fit",
        TemplateError: "template_error",
        StructureError: "form_failed",
        UnsupportedError: "unsupported",
        InvalidRequestError: None,
    }
)
_NAMED_IN = MappingProxyType({"structured_outputs": "structured_outputs", "structured outputs": "structured_outputs"})


class ApiError(Exception):
    """What a client is told instead of an answer.

    Clients try 408, 409, 429 and 5xx again, so what can never succeed is 400, 401, 403, 404, 405, 413, 415, 422 or 431.

    Args:
        status: Of the reply.
        message: What was wrong, with the value and the way out. No paths, no addresses, nothing of other requests.
        kind: ``type`` of the error object.
        param: The parameter at fault.
        code: What programs tell errors apart by.
        headers: More headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


class ErrorObject(msgspec.Struct):
    """The inner object.

    Attributes:
        message: What was wrong.
        type: Class of the error.
        param: The parameter at fault, if one is.
        code: What programs tell errors apart by.
    """

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """What every error reply holds.

    Attributes:
        error: The error.
    """

    error: ErrorObject


def error_body(error: ApiError) -> ErrorBody:
    """The reply's body."""
    return ErrorBody(ErrorObject(error.message, error.kind, error.param, error.code))


def unavailable(message: str, code: str, *, retry_after_s: int = 1) -> ApiError:
    """503: worth trying again, here or elsewhere."""
    return ApiError(503, message, kind="server_error", code=code, headers={"retry-after": str(retry_after_s)})


def too_many(message: str, code: str, *, retry_after_s: int = 1) -> ApiError:
    """429: worth trying again after a while."""
    return ApiError(429, message, kind="rate_limit_error", code=code, headers={"retry-after": str(retry_after_s)})


def not_found(message: str, code: str, *, param: str | None = None) -> ApiError:
    """404: there is no such thing."""
    return ApiError(404, message, param=param, code=code)


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """400: can never succeed as it stands."""
    return ApiError(400, message, param=param, code=code)


def internal_error() -> ApiError:
    """500: what went wrong is in the server's log, under the id of the request, not in the reply."""
    return ApiError(500, "the server failed on this request; its log says why", kind="server_error", code="internal")


def as_api_error(error: PioError) -> ApiError:
    """What a client is told about ``error``."""
    if isinstance(error, QueueFullError):
        return too_many("as many requests wait as may; try again shortly", "queue_full")
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return invalid(str(error), _param_of(error.message), code=code)
    # Its reason may be any exception's text, with paths and addresses in it: that goes to the log.
    if isinstance(error, EngineError):
        return ApiError(500, "the engine failed on this request", kind="server_error", code="engine_error")
    return internal_error()


@contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """Have errors name parameters as the client does, where its endpoint speaks through another's.

    Args:
        names: From the names that the endpoint within uses to the client's.

    Raises:
        ApiError: What was raised within, renamed.
        PioError: What was raised within and is no fault of the request.
    """
    try:
        yield
    except ApiError as error:
        raise _renamed(error, names) from error
    except PioError as error:
        known = as_api_error(error)
        if known.status >= 500:
            raise
        raise _renamed(known, names) from error


def _renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    match = None if error.param is None else re.match(r"\w+", error.param)
    if error.param is None or match is None or match[0] not in names:
        return error
    old, new = match[0], names[match[0]]
    message = re.sub(rf"{old}\b", new, error.message, count=1) if error.message.startswith(old) else error.message
    param = new + error.param[len(old) :]
    return ApiError(error.status, message, kind=error.kind, param=param, code=error.code, headers=error.headers)


def _param_of(message: str) -> str | None:
    """The parameter that a message of the core names first."""
    match = _PARAM.match(message)
    if match is not None:
        return match[1]
    return next((param for words, param in _NAMED_IN.items() if words in message), None)
