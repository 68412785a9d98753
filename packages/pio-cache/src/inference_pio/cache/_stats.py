"""Counters of the cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStats:
    """What happened so far; only ever counted up.

    Attributes:
        queries: Tokens of sequences that were looked up when they were admitted.
        hits: Tokens of them that were found.
        evictions: Pages of cached prefixes, and checkpoints of states, given up for something else.
        copies: Pages copied within the device: copy-on-write, checkpoints taken and restored, forked states.
    """

    queries: int = 0
    hits: int = 0
    evictions: int = 0
    copies: int = 0
