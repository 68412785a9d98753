"""Progress on a terminal's standard error; rich is imported only when there is something to draw."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inference_pio.cli._output import shows_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

WIPE = "\r\x1b[K"
"""Clears a terminal's line."""

_PATIENCE_S = 0.3


class _Bar:
    """A bar that appears once the work has gone on for a moment; called with bytes done and bytes in all."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._started: float | None = None
        self._shown: tuple[Progress, TaskID] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        self._started = now if self._started is None else self._started
        if self._shown is None and now - self._started >= _PATIENCE_S and done < total:
            self._shown = self._show(total)
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=done, total=total)
            if done >= total:  # the next bar needs the line
                self.close()

    def close(self) -> None:
        if self._shown is not None:
            self._shown[0].stop()
            self._shown = None

    def _show(self, total: int) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        sys.stderr.write(WIPE)  # of what a status left on the line
        bar.start()
        return bar, bar.add_task(self._description, total=total)


@contextmanager
def byte_progress(description: str, *, wanted: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A callback that draws ``description`` and a bar, or None where nobody would see it."""
    if not shows_progress(wanted=wanted):
        yield None
        return
    bar = _Bar(description)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def status(text: str, *, wanted: bool) -> Iterator[None]:
    """Show ``text`` on the terminal's last line meanwhile, and wipe it afterwards."""
    if not shows_progress(wanted=wanted):
        yield
        return
    sys.stderr.write(text)
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write(WIPE)
        sys.stderr.flush()
