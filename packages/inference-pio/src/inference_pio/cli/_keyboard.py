"""A person at the keyboard: lines with history and editing, and Ctrl-C that stops an answer but not the program."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.cli._output import is_terminal
from inference_pio.cli._prompt import check_text
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

PROMPT = ">>> "
CONTINUATION = "... "
_FENCE = '"""'
_HISTORY_LINES = 1000


class StopKey:
    """Ctrl-C while the model answers: the first asks to stop, the second interrupts the program.

    Args:
        at_once: Whether the first interrupts what is waited for, too.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.presses = 0
        self._at_once = at_once

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.presses > 0

    def press(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle one Ctrl-C.

        Raises:
            KeyboardInterrupt: It is the second, or there is nothing to wait for.
        """
        self.presses += 1
        if self.presses > 1 or self._at_once:
            raise KeyboardInterrupt


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """Ctrl-C as Python has it: in a conversation it is no reason to end the program."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stop_key(*, at_once: bool = False) -> Iterator[StopKey]:
    """Make Ctrl-C a stop key meanwhile."""
    key = StopKey(at_once=at_once)
    before = signal.signal(signal.SIGINT, key.press)
    try:
        yield key
    finally:
        signal.signal(signal.SIGINT, before)


def is_interactive() -> bool:
    """Whether a person types on standard input."""
    return is_terminal(sys.stdin)


def read_message() -> str:
    """One message: a line, or all lines between triple quotes.

    Raises:
        EOFError: The input has ended.
        InvalidRequestError: It is no text.
    """
    text = _read_line(PROMPT)
    if text.lstrip().startswith(_FENCE):
        text = text.lstrip().removeprefix(_FENCE)
        while not text.rstrip().endswith(_FENCE):
            text += "\n" + _read_line(CONTINUATION)
        text = text.rstrip().removesuffix(_FENCE)
    check_text(text)
    return text.strip()


def _read_line(prompt: str) -> str:
    if is_terminal(sys.stdin) and is_terminal(sys.stdout):
        return input(prompt)
    if is_terminal(sys.stdin):  # the answers go elsewhere, and the prompt is none of them
        sys.stderr.write(prompt)
        sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not UTF-8 text at byte {error.start}") from None
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def history_file() -> Path:
    """Where typed lines are remembered: ``pio/chat_history`` in the user's state folder."""
    base = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    return folder / "pio" / "chat_history"


@contextmanager
def line_history(path: Path) -> Iterator[None]:
    """Line editing with a history that is kept in ``path``, readable by the user alone; without readline, nothing."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        yield
        return
    try:
        import readline
    except ImportError:  # Python on Windows has none
        yield
        return
    readline.set_history_length(_HISTORY_LINES)
    if path.is_file():
        readline.read_history_file(path)
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        readline.write_history_file(path)
