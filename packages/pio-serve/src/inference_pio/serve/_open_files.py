"""How many files the process may have open: every connection is one."""

from __future__ import annotations

import logging
import sys

from inference_pio.serve._protocol import BEYOND

LOG = logging.getLogger("inference_pio.serve")
_OTHERS = 512
"""Model files, libraries, pipes, collectors of traces."""


def allow_open_files(connections: int, *, files_each: int) -> None:
    """Raise the process's own limit as far as ``connections`` need it and the system lets it; shells set it low.

    Args:
        connections: The bound of those that are open at once.
        files_each: A router has another connection behind each.
    """
    if sys.platform == "win32":  # it has no such limit
        return
    import resource

    wanted = files_each * (connections + 2 * BEYOND) + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        LOG.warning("%d files may be open, too few for %d connections: raise 'ulimit -n'", allowed, connections)
