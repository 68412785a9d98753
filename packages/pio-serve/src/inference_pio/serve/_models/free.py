"""Giving memory back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_memory_back() -> None:
    """Have the C library return what is free.

    Weights and caches are mappings of their own, which go with the last reference to them. What came in small pieces
    (tokenizers, merges, bookkeeping of pages) lies in the C library's heap, and glibc keeps freed memory there as long
    as something above it is in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
