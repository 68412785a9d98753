"""Digests of pages: equal only if all tokens up to the page's end, and the salt, are equal."""

from __future__ import annotations

import secrets
from array import array
from hashlib import blake2b

_DIGEST_SIZE = 16


class PageHasher:
    """Chains of digests, one per page: of the page's tokens and the digest before it.

    Keyed with random bytes (BLAKE2b, RFC 7693, section 2.5): nobody outside can search for tokens that collide with
    those of another tenant.

    Args:
        page_size: Tokens per page.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._key = secrets.token_bytes(32)

    def root(self, salt: str) -> bytes:
        """The digest before the first page."""
        return self._digest(salt.encode("utf-8", "surrogatepass"))

    def extend(self, digests: list[bytes], tokens: list[int], num_pages: int, root: bytes) -> None:
        """Append to ``digests`` until the first ``num_pages`` pages of ``tokens`` have theirs."""
        size = self._page_size
        parent = digests[-1] if digests else root
        for start in range(len(digests) * size, num_pages * size, size):
            parent = self._digest(parent + array("q", tokens[start : start + size]).tobytes())
            digests.append(parent)

    def _digest(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=_DIGEST_SIZE, key=self._key).digest()
