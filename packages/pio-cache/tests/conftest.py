"""Small caches, and sequences that are computed at once."""

from __future__ import annotations

import pytest

from inference_pio.cache import CacheManager
from inference_pio.interfaces import CacheGroup


@pytest.fixture
def make():
    """A manager of pages of 4 tokens: ``make(full=8, window=(5, 6), state=3, host=2)``."""

    def build(*, full=None, window=None, state=None, host=0, **options):
        groups = []
        if full is not None:
            groups.append(CacheGroup(kind="full", num_pages=full, num_host_pages=host))
        if window is not None:
            size, pages = window
            groups.append(CacheGroup(kind="window", window=size, num_pages=pages, num_host_pages=host))
        if state is not None:
            groups.append(CacheGroup(kind="state", num_pages=state, num_host_pages=host))
        return CacheManager(groups, page_size=4, **options)

    return build


@pytest.fixture
def compute():
    """Admit a sequence of these tokens where it has no pages yet, and compute it up to ``end``."""

    def run(manager, seq, end=None, expected=0):
        end = len(seq.tokens) if end is None else end
        if not seq.admitted:
            assert manager.admit(seq, end, expected=max(expected, end))
        assert manager.grow(seq, end)
        manager.commit(seq, end)
        manager.check()
        return seq

    return run
