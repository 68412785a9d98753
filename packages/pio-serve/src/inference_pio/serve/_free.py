"""Giving memory back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_memory_back() -> None:
    """Free what nobody refers to, and have the C library return it.

    Weights and caches are mappings of their own, which go as soon as nobody refers to them. What came in small pieces
    (tokenizers, merges, bookkeeping of pages) lies in the C library's heap, and glibc keeps freed memory there below
    whatever is still in use above it.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
