"""Digests of pages: equal only if all tokens up to the page's end, and the salt, are equal."""

from __future__ import annotations

import secrets
from hashlib import blake2b
from struct import Struct

_DIGEST_SIZE = 16


class PageHasher:
    """Chains of digests, one per page: of the digest before it and the page's tokens.

    The first digest of a chain is keyed with random bytes (BLAKE2b, RFC 7693, section 2.5), and so all are secret:
    nobody outside can search for tokens that collide with those of another tenant.

    Args:
        page_size: Tokens per page.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._key = secrets.token_bytes(32)
        self._pack = Struct(f"<{page_size}q").pack

    def root(self, salt: str) -> bytes:
        """The digest before the first page."""
        return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_SIZE, key=self._key).digest()

    def extend(self, digests: list[bytes], tokens: list[int], num_pages: int, root: bytes) -> None:
        """Append to ``digests`` until the first ``num_pages`` pages of ``tokens`` have theirs."""
        size = self._page_size
        parent = digests[-1] if digests else root
        for start in range(len(digests) * size, num_pages * size, size):
            data = parent + self._pack(*tokens[start : start + size])
            parent = blake2b(data, digest_size=_DIGEST_SIZE).digest()
            digests.append(parent)
