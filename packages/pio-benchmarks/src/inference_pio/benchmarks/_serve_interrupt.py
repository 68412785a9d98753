"""Ctrl-C while a load runs: stop, and report what there is."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[asyncio.Event]:
    """An event of the running loop that SIGINT sets instead of raising, where the system lets loops see signals."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    able = threading.current_thread() is threading.main_thread()
    if able:
        try:
            loop.add_signal_handler(signal.SIGINT, stop.set)
        except NotImplementedError:  # Windows, where Ctrl-C ends the run without a report
            able = False
    try:
        yield stop
    finally:
        if able:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)
