"""The prompt: from the arguments, from standard input, or both."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING

from inference_pio.cli._output import is_terminal, note
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_BYTES = 64 * 2**20
_PATIENCE_S = 1.0


def read_prompt(argument: str | None, *, quiet: bool = False) -> str:
    """The text to answer: ``argument``, what is piped in, or both with an empty line between them.

    ``-`` reads standard input even from a terminal.

    Raises:
        InvalidRequestError: There is none, or it is no text.
    """
    piped = _read_stdin(quiet=quiet) if argument == "-" or _is_piped(required=argument is None) else None
    given = None if argument == "-" else argument
    if given is not None:
        check_text(given)
    parts = [part for part in (given, piped) if part is not None and part.strip()]
    if not parts:
        found = "the prompt is empty" if given is not None or piped is not None else "no prompt"
        raise InvalidRequestError(found, hint='give one, such as pio run "Hello", or pipe text in')
    return "\n\n".join(parts)


def _is_piped(*, required: bool) -> bool:
    """Whether standard input is a pipe or a file, and not a terminal or /dev/null."""
    if sys.stdin is None or is_terminal(sys.stdin):
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except OSError:  # no descriptor, as under a test runner: read it only if there is nothing else
        return required
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_stdin(*, quiet: bool) -> str:
    if sys.stdin is None:
        raise InvalidRequestError("standard input is closed", hint="give the prompt as an argument")
    stream = sys.stdin.buffer
    if not quiet and not is_terminal(sys.stdin):
        _tell_if_waiting(stream)
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidRequestError(f"standard input has more than {MAX_BYTES} bytes", hint="give less text")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not UTF-8 text at byte {error.start}") from None


def _tell_if_waiting(stream: BinaryIO) -> None:
    """A pipe that somebody left open would look like a hang."""
    if os.name != "posix":
        return
    try:
        ready, _, _ = select.select([stream], [], [], _PATIENCE_S)
    except (OSError, ValueError):  # no descriptor to wait for
        return
    if not ready:
        note("pio: reading standard input (end it with Ctrl-D; redirect it from /dev/null if there is none)")


def check_text(text: str) -> None:
    """Refuse what is no UTF-8: such arguments arrive with their bytes smuggled in as surrogates.

    Raises:
        InvalidRequestError: There are some.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"the prompt is not UTF-8 text at character {error.start}") from None
