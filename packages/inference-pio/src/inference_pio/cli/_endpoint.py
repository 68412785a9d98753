"""Where a server is, and the key that it is shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from inference_pio.interfaces import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path

KEY_VARIABLE = "PIO_SERVE_API_KEY"
_KEY_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible API.

    Attributes:
        url: What its paths are added to, such as ``http://127.0.0.1:8000/v1``.
        host: Its host, as people write it.
        is_here: Whether that is this machine, by its own name for itself.
        is_encrypted: Whether it is reached by TLS.
        key: What it is shown; None for nothing.
    """

    url: str
    host: str
    is_here: bool
    is_encrypted: bool
    key: str | None = field(default=None, repr=False)


def endpoint_of(url: str, key: str | None, *, plain_key: bool) -> Endpoint:
    """The API at ``url``; an address without a path means ``/v1`` there.

    Args:
        url: As the user gave it.
        key: The key, if there is one.
        plain_key: Whether a key may travel unencrypted to another machine.

    Raises:
        InvalidRequestError: No address of an API, or a key that anyone on the way could read.
    """
    parts = _split(url)
    host = parts.hostname or ""
    is_here = _is_loopback(host)
    encrypted = parts.scheme == "https"
    if key is not None and not (encrypted or is_here or plain_key):
        raise InvalidRequestError(
            f"the API key would go to {host} unencrypted",
            hint="give an https URL, unset the key, or say --plain-key if you trust everyone on the way",
        )
    path = parts.path.rstrip("/") or "/v1"
    return Endpoint(f"{parts.scheme}://{parts.netloc}{path}", host, is_here, encrypted, key)


def read_key(file: Path | None) -> str | None:
    """The first key in ``file``; without one, that of the environment, if there is any.

    Raises:
        ConfigError: The file cannot be read, or holds none; or the key has characters that no header can carry.
    """
    if file is None:
        key, source = os.environ.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE
        if not key:
            return None
    else:
        key, source = _first_line(file), str(file)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{source}: the key has characters that no key has", hint="keys are plain ASCII")
    return key


def _split(url: str) -> SplitResult:
    problem = f"--url {url!r} is not the address of a server"
    hint = "such as http://127.0.0.1:8000 or https://example.org/v1"
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidRequestError(problem, hint=hint)
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")  # labels that no name has
    except ValueError as error:
        raise InvalidRequestError(f"{problem}: {error}", hint=hint) from None
    if parts.username is not None or parts.password is not None:  # others see the arguments of a process
        raise InvalidRequestError("--url must not hold a user or a password", hint="give the key by --api-key-file")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise InvalidRequestError(problem, hint=hint)
    return parts


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, which may be anyone's
        return False


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            lines = stream.read(_KEY_FILE_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--api-key-file {file}: {reason}") from None
    found = next((line.strip() for line in lines if line.strip() and not line.startswith("#")), None)
    if found is None:
        raise ConfigError(f"--api-key-file {file}: there is no key in it", hint="write one on its first line")
    return found
