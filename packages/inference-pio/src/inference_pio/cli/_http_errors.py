"""What goes wrong between here and a server, and the way out."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import TYPE_CHECKING

from inference_pio.interfaces import InvalidRequestError, ModelNotFoundError, PioError

if TYPE_CHECKING:
    from urllib.error import HTTPError

    from inference_pio.cli._endpoint import Endpoint

_BODY_BYTES = 64 * 1024
_MESSAGE_CHARS = 500
_KEY_HINT = "give the server's key by --api-key-file or PIO_SERVE_API_KEY"


class ServerError(PioError):
    """A server that cannot be reached, refuses, or breaks off."""


def unreachable(endpoint: Endpoint, error: Exception) -> ServerError:
    """The error of a connection that failed or broke."""
    url, host = endpoint.url, endpoint.host
    match error:
        case ConnectionRefusedError():
            message = f"no server listens at {url}"
            hint = "start one, such as pio serve, or give its --url" if endpoint.is_here else "look at --url again"
        case ssl.SSLCertVerificationError():
            message = f"the certificate of {host} cannot be trusted: {error.verify_message}"
            hint = "if an authority of your own has signed it, let SSL_CERT_FILE name that one's certificate"
        case ssl.SSLError():
            message = f"no TLS connection to {host}: {error.reason or error}"
            hint = "a server without TLS has an http URL"
        case socket.gaierror():
            message, hint = f"there is no host {host!r}: {error.strerror}", "look at --url again"
        case TimeoutError():
            message, hint = f"{url} does not answer", "try again, or look at the server's log"
        case http.client.HTTPException() | ConnectionError():
            message = f"{url} ended the connection: {_first_line(error)}"
            hint = (
                "look at the server's log" if endpoint.is_encrypted else "has it an https URL? or see the server's log"
            )
        case _:
            message, hint = f"{url} cannot be reached: {_first_line(error)}", "look at --url again"
    return ServerError(message, hint=hint)


def refusal(endpoint: Endpoint, error: HTTPError) -> PioError:
    """The error of a reply that is none of 2xx; reads its body."""
    said = _message(error)
    match error.code:
        case 401 | 403:
            return ServerError(f"{endpoint.url} refuses the key: {said}" if endpoint.key else said, hint=_KEY_HINT)
        case 404:
            return ModelNotFoundError(f"{endpoint.url}: {said}", hint="an API's address mostly ends in /v1")
        case 429 | 503:
            after = error.headers.get("retry-after")
            hint = f"it says to come back in {after[:20]} s" if after else "try again later"
            return ServerError(f"{endpoint.url}: {said}", hint=hint)
        case code if 300 <= code < 400:
            to = error.headers.get("location", "somewhere")[:200]
            return ServerError(f"{endpoint.url} sends on to {to}, where nothing is sent", hint="give that as --url")
        case code if 400 <= code < 500:
            return InvalidRequestError(f"the server refuses the request: {said}")
    return ServerError(f"{endpoint.url} failed with {error.code}: {said}", hint="look at the server's log")


def told(value: object) -> str | None:
    """The message of an error object: OpenAI's ``{"error": {"message": ...}}``, and what others make of it."""
    if not isinstance(value, dict):
        return None
    inner = value.get("error", value)
    found = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
    return " ".join(found.split())[:_MESSAGE_CHARS] if isinstance(found, str) and found.strip() else None


def _message(error: HTTPError) -> str:
    status = error.reason or f"status {error.code}"
    try:
        return told(json.loads(error.read(_BODY_BYTES))) or status
    except (OSError, ValueError, RecursionError, http.client.HTTPException):  # the status is what there is to say
        return status


def _first_line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
