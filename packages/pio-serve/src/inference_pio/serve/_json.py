"""JSON in and out: requests checked against their types, replies encoded from theirs."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, TypeVar

import msgspec
from starlette.responses import Response

from inference_pio.serve._context import header
from inference_pio.serve._errors import ApiError, invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Scope

Wire = TypeVar("Wire", bound=msgspec.Struct)

_ENCODER = msgspec.json.Encoder()
_PLACE = re.compile(r" - at `(?:key in )?\$?\.?([^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")


def encode(value: object) -> bytes:
    """``value`` as JSON."""
    return _ENCODER.encode(value)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply that holds ``value``."""
    return Response(encode(value), status, dict(headers or {}), media_type="application/json")


def check_media_type(scope: Scope) -> None:
    """Refuse a body that does not say that it is JSON.

    Browsers send other types across origins without asking first; JSON they ask for, and are refused.

    Raises:
        ApiError: 415.
    """
    kind = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise _not_taken("the body must be JSON: send 'Content-Type: application/json'")
    if header(scope, b"content-encoding") not in {None, b"identity"}:
        raise _not_taken("compressed bodies are not taken")


def decode(kind: type[Wire], body: bytes) -> Wire:
    """A request of type ``kind``.

    Raises:
        ApiError: Not JSON, or not of this type; the message names the field, and the nearest known one for an unknown.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _describe(kind, str(error)) from None
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except msgspec.DecodeError as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise invalid("the body is nested too deeply", code="invalid_json") from None


def _not_taken(message: str) -> ApiError:
    return ApiError(415, message, code="unsupported_media_type")


def _describe(kind: type[msgspec.Struct], text: str) -> ApiError:
    place = _PLACE.search(text)
    path = place[1] if place is not None else ""
    problem = text[: place.start()] if place is not None else text
    unknown = _UNKNOWN.match(problem)
    if unknown is not None:
        where = f" in {path}" if path else ""
        nearest = [] if path else difflib.get_close_matches(unknown[1], kind.__struct_fields__, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        return invalid(
            f"unknown parameter {unknown[1]!r}{where}{hint}", _joined(path, unknown[1]), code="unknown_parameter"
        )
    missing = _MISSING.match(problem)
    if missing is not None:
        param = _joined(path, missing[1])
        return invalid(f"parameter {param!r} is required", param, code="missing_parameter")
    subject = path or "the body"
    return invalid(f"{subject}: {problem[:1].lower()}{problem[1:]}", path or None, code="invalid_type")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
