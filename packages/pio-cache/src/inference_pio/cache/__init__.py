"""Bookkeeping of a paged KV cache, without torch: who owns which page, which prefixes are there, what must be copied.

Whoever stores the pages allocates them as :func:`plan_groups` says, carries out the moves that
:meth:`CacheManager.take_moves` hands over, and reads through the tables of :class:`SequencePages`.
"""

from inference_pio.cache._manager import CacheManager
from inference_pio.cache._moves import MoveKind, PageMove
from inference_pio.cache._plan import plan_groups
from inference_pio.cache._prefixes import PrefixMatch
from inference_pio.cache._sequence import SequencePages
from inference_pio.cache._stats import CacheStats

__all__ = [
    "CacheManager",
    "CacheStats",
    "MoveKind",
    "PageMove",
    "PrefixMatch",
    "SequencePages",
    "plan_groups",
]
