"""From arguments to an exit code: the one place that catches everything, and the only one that ends the process.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 does not fit, 5 plugin or hardware missing, 130 interrupted,
141 whoever read standard output went away.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

OUTPUT_CLOSED = 141
"""128 + SIGPIPE, as shells report a program whose reader went away."""


class _Interrupts:
    """SIGINT as ``KeyboardInterrupt``, remembered: libraries turn one that strikes during import into other errors."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; never raises for what a user can cause.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    interrupts = _Interrupts()
    own = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if own:
        signal.signal(signal.SIGINT, interrupts)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = OUTPUT_CLOSED
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever comes here becomes a message and a code
        code = INTERRUPTED if interrupts.seen else _report(error, arguments)
    finally:
        if own:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return _flush(code)


def script() -> NoReturn:
    """The console script: :func:`main`, then the end of the process.

    Exit handlers run; taking torch's modules apart object by object, which takes most of a second, is left out.
    """
    code = main()
    atexit._run_exitfuncs()  # noqa: SLF001 - what the interpreter itself would call, and has no public name
    os._exit(code)


def _run(arguments: list[str]) -> int:
    if sys.stdout is None:  # Python's word for a descriptor that was closed before it started
        from inference_pio.interfaces import InvalidRequestError

        raise InvalidRequestError("standard output is closed", hint="send it somewhere, such as > /dev/null")
    # The hub's client would tell its maker about this machine, and ask it for a list of programs to tell it about.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from inference_pio.cli._commands import build_cli

    cli = build_cli()
    if "_PIO_COMPLETE" in os.environ:
        cli.main(arguments, prog_name="pio", complete_var="_PIO_COMPLETE")
    import click
    from click.exceptions import Abort, Exit, NoArgsIsHelpError

    try:
        with cli.make_context("pio", arguments or ["--help"]) as context:
            cli.invoke(context)
    except Exit as error:
        return error.exit_code
    except NoArgsIsHelpError as error:  # a group of commands without one, such as pio config
        click.echo(error.message)
    except Abort:
        return INTERRUPTED
    return 0


def _report(error: Exception, arguments: list[str]) -> int:
    from inference_pio.cli._errors import report

    try:
        return report(error, as_json="--json" in itertools.takewhile(lambda argument: argument != "--", arguments))
    except BrokenPipeError:
        return OUTPUT_CLOSED


def _flush(code: int) -> int:
    """Write out what is buffered; a reader that is gone must not make the interpreter complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError as error:
            # The buffer cannot be emptied any more: let the interpreter's own last flush go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if code == 0:
                code = OUTPUT_CLOSED if isinstance(error, BrokenPipeError) else 1
    return code
