"""API keys: kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import string
from typing import TYPE_CHECKING

from inference_pio.interfaces import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MIN_CHARS = 8
MAX_CHARS = 512
MAX_KEYS = 10_000
_MAX_FILE_BYTES = 4 * 1024 * 1024
_ALLOWED = frozenset(string.ascii_letters + string.digits + string.punctuation)


class KeyRing:
    """The keys that open a server. Holds their SHA-256 only.

    Args:
        keys: In plain text; each at least 8 and at most 512 visible ASCII characters.

    Raises:
        ConfigError: A key is too short, too long or not plain ASCII. The message does not show it.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        digests = [_digest(_checked(key, place)) for place, key in enumerate(keys, start=1)]
        if len(digests) > MAX_KEYS:
            raise ConfigError(f"{len(digests)} API keys are too many; the limit is {MAX_KEYS}")
        self._digests = tuple(dict.fromkeys(digests))

    def __len__(self) -> int:
        return len(self._digests)

    def become(self, other: KeyRing) -> None:
        """From here on open for the keys of ``other``, and for no others."""
        vars(self).update(vars(other))

    def key_id(self, key: bytes) -> str | None:
        """A name for ``key`` that does not tell it, or None if it opens nothing.

        Takes as long whichever of the keys it is, and if it is none.
        """
        given = hashlib.sha256(key).digest()
        found: str | None = None
        for digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = digest.hex()[:12]
        return found


def read_key_file(path: Path) -> list[str]:
    """Keys of a file with one per line; empty lines and lines that begin with ``#`` are skipped.

    Raises:
        ConfigError: The file cannot be read, is not text, is too large, or holds no key.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(f"the API key file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the API key file {path} is not UTF-8 text") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"the API key file {path} has more than {_MAX_FILE_BYTES} bytes")
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"the API key file {path} holds no key", hint="write one key per line")
    return keys


def _checked(key: str, place: int) -> str:
    if not MIN_CHARS <= len(key) <= MAX_CHARS or not _ALLOWED.issuperset(key):
        raise ConfigError(
            f"API key {place} must be {MIN_CHARS} to {MAX_CHARS} visible ASCII characters, and is not",
            hint="make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
