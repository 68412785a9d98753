"""A bar for long work: tqdm on a terminal, nothing elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class ProgressBar:
    """Prompts done and tokens per second, on stderr.

    Args:
        total: Prompts in all.
        shown: True or False, or None for where stderr is a terminal, there is more than one prompt, and
            ``PIO_NO_PROGRESS`` is not set.
        callback: Called with prompts done and prompts in all, besides.
    """

    def __init__(self, total: int, *, shown: bool | None, callback: Callable[[int, int], None] | None) -> None:
        self._total = total
        self._done = 0
        self._tokens = 0
        self._callback = callback
        if shown is None:
            shown = total > 1 and sys.stderr.isatty() and not os.environ.get("PIO_NO_PROGRESS")
        self._bar = None
        if shown:
            from tqdm import tqdm

            # A terminal that does not know its size, as in some containers, would get an empty line.
            sized = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
            columns, lines = (None, None) if sized else shutil.get_terminal_size()
            self._bar = tqdm(
                total=total, desc="prompts", unit="prompt", ncols=columns, nrows=lines, dynamic_ncols=sized
            )

    def add_tokens(self, count: int) -> None:
        """Note tokens that were generated."""
        self._tokens += count

    def finish_one(self) -> None:
        """Note a prompt that is done."""
        self._done += 1
        if self._bar is not None:
            elapsed = self._bar.format_dict["elapsed"]
            self._bar.set_postfix_str(f"{self._tokens / max(elapsed, 1e-9):.0f} tokens/s", refresh=False)
            self._bar.update()
        if self._callback is not None:
            self._callback(self._done, self._total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
