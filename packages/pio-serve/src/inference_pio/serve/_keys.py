"""API keys: kept as hashes, compared in constant time, each with what it may do."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import logging
import os
import re
import stat
import string
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import ConfigError
from inference_pio.serve._context import ANONYMOUS
from inference_pio.serve._scopes import SCOPES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LOG = logging.getLogger("inference_pio.serve")
MIN_CHARS = 8
MAX_CHARS = 512
MAX_KEYS = 10_000
HASHED = "sha256:"
UNNAMED = "unnamed"
"""What metrics call all keys without a name."""
_MAX_FILE_BYTES = 4 * 1024 * 1024
_ALLOWED = frozenset(string.ascii_letters + string.digits + string.punctuation)
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_FIELDS = ("name", "scopes", "max-concurrent", "tokens-per-minute")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGrant:
    """What one key may do.

    Attributes:
        id: Its name, or else the first digits of its hash; goes into logs.
        is_named: Whether it has a name.
        scopes: What it may ask for; None for everything.
        max_concurrent: Requests that it may have open at once; None for as many as any key.
        tokens_per_minute: Tokens that it may use per minute; None for as many as any key.
    """

    id: str
    is_named: bool = False
    scopes: frozenset[str] | None = None
    max_concurrent: int | None = None
    tokens_per_minute: int | None = None


class KeyRing:
    """The keys that open a server. Holds their SHA-256 only.

    Args:
        keys: One text each: the key, at least 8 and at most 512 visible ASCII characters, or ``sha256:`` and the 64
            hexadecimal digits of its hash; after it, apart by spaces, what it may do: ``name=ci scopes=generate,models
            max-concurrent=4 tokens-per-minute=60000``. A key that says nothing of scopes may do everything.

    Raises:
        ConfigError: A key is too short, too long or not plain ASCII, or says of itself what cannot be. The message does
            not show it.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        grants: dict[bytes, KeyGrant] = {}
        self._by_id: dict[str, KeyGrant] = {}
        for place, text in enumerate(keys, start=1):
            digest, grant = _parse(text, place)
            # Two keys of one name are one client that changes its key; what it may do must not depend on which it uses.
            if grants.setdefault(digest, grant) != grant or self._by_id.setdefault(grant.id, grant) != grant:
                raise ConfigError(f"API key {place} is there twice, or its name is, with different rights")
        if len(grants) > MAX_KEYS:
            raise ConfigError(f"{len(grants)} API keys are too many; the limit is {MAX_KEYS}")
        self._grants = tuple(grants.items())

    def __len__(self) -> int:
        return len(self._grants)

    def become(self, other: KeyRing) -> None:
        """From here on open for the keys of ``other``, and for no others."""
        vars(self).update(vars(other))

    def find(self, key: bytes) -> KeyGrant | None:
        """What ``key`` may do, or None if it opens nothing.

        Takes as long whichever of the keys it is, and if it is none.
        """
        given = hashlib.sha256(key).digest()
        found: KeyGrant | None = None
        for digest, grant in self._grants:
            if hmac.compare_digest(given, digest):
                found = grant
        return found

    def key_id(self, key: bytes) -> str | None:
        """A name for ``key`` that does not tell it, or None if it opens nothing."""
        found = self.find(key)
        return None if found is None else found.id

    def grant(self, key_id: str) -> KeyGrant | None:
        """What the keys of this id may do; None if there are none."""
        return self._by_id.get(key_id)

    def label(self, key_id: str) -> str:
        """What metrics call a key: there are as many words as names in the key file, and two more."""
        grant = self._by_id.get(key_id)
        if grant is None:
            return ANONYMOUS if key_id == ANONYMOUS else UNNAMED
        return grant.id if grant.is_named else UNNAMED


def read_key_file(path: Path) -> list[str]:
    """Keys of a file with one per line, as a :class:`KeyRing` takes them.

    Empty lines and lines that begin with ``#`` are skipped.

    Raises:
        ConfigError: The file cannot be read, is not text, is too large, or holds no key.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
            is_open = bool(os.fstat(file.fileno()).st_mode & stat.S_IRWXO) and sys.platform != "win32"
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
    if is_open and not all(key.startswith(HASHED) for key in keys):
        LOG.warning("every user of this machine may read the API keys in %s: chmod o-rwx it, or keep hashes", path)
    return keys


def plain_key(text: str) -> str:
    """The key of one text that a :class:`KeyRing` takes, to send it somewhere.

    Raises:
        ConfigError: It is none, or only its hash is there.
    """
    KeyRing([text])  # what is no key would be no header either
    key = text.split(maxsplit=1)[0]
    if key.startswith(HASHED):
        raise ConfigError("the API key is there as a hash, which opens nothing", hint="give the key itself")
    return key


def _parse(text: str, place: int) -> tuple[bytes, KeyGrant]:
    key, *fields = text.split() or [""]
    digest = _digest(key, place)
    given: dict[str, str] = {}
    for field in fields:
        what, equals, value = field.partition("=")
        if not equals or what in given or what not in _FIELDS:
            # What stands there may be a piece of a key, and is not shown.
            raise ConfigError(
                f"API key {place} must be followed by NAME=VALUE alone, each once",
                hint=f"NAME is one of {', '.join(_FIELDS)}",
            )
        given[what] = value
    name = given.get("name")
    if name is not None and (not _NAME.fullmatch(name) or name in {ANONYMOUS, UNNAMED}):
        raise ConfigError(
            f"API key {place}: name {name!r:.80} must be letters, digits, '.', '_', '@' and '-', at most 64"
        )
    return digest, KeyGrant(
        id=name or digest.hex()[:12],
        is_named=name is not None,
        scopes=_scopes(given.get("scopes"), place),
        max_concurrent=_number(given, "max-concurrent", place),
        tokens_per_minute=_number(given, "tokens-per-minute", place),
    )


def _digest(key: str, place: int) -> bytes:
    if key.startswith(HASHED):
        digits = key.removeprefix(HASHED)
        if not _HASH.fullmatch(digits):
            raise ConfigError(f"API key {place} must be {HASHED} and 64 hexadecimal digits, and is not")
        return bytes.fromhex(digits)
    if not MIN_CHARS <= len(key) <= MAX_CHARS or not _ALLOWED.issuperset(key):
        raise ConfigError(
            f"API key {place} must be {MIN_CHARS} to {MAX_CHARS} visible ASCII characters, and is not",
            hint="make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return hashlib.sha256(key.encode()).digest()


def _scopes(text: str | None, place: int) -> frozenset[str] | None:
    if text is None:
        return None
    found = frozenset(text.split(","))
    for one in sorted(found - SCOPES):
        nearest = difflib.get_close_matches(one, SCOPES, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(SCOPES))}"
        raise ConfigError(f"API key {place}: there is no scope {one!r:.80}", hint=hint)
    return found


def _number(given: dict[str, str], name: str, place: int) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:19]) <= 10**12:
        raise ConfigError(f"API key {place}: {name} must be a number of at least 1, got {text!r:.40}")
    return int(text)
