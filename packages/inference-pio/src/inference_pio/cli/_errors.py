"""Errors as users see them: one line on standard error, an exit code, and with ``--json`` an object as well."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import click

from inference_pio.cli._output import note, write_json
from inference_pio.interfaces import PioError


@dataclass(frozen=True, slots=True)
class Problem:
    """What to tell.

    Attributes:
        kind: Class of the error.
        message: What was wrong, on one line.
        hint: The way out, or None.
        exit_code: The process's.
    """

    kind: str
    message: str
    hint: str | None
    exit_code: int


def describe(error: Exception) -> Problem:
    """The terms in which ``error`` is told."""
    kind = type(error).__name__
    match error:
        case PioError():
            return Problem(kind, _one_line(error.message), error.hint and _one_line(error.hint), error.exit_code)
        case click.ClickException():
            return _describe_usage(error)
        case ImportError():
            return Problem(kind, f"cannot import a library: {_one_line(str(error))}", "pio env lists what is here", 5)
        case MemoryError():
            return Problem(kind, "out of memory", "take a smaller model, or lower max_model_len", 4)
        case OSError(strerror=str(reason)):
            place = "input or output" if error.filename is None else error.filename
            return Problem(kind, _one_line(f"{place}: {reason}"), None, 1)
    return Problem(kind, f"internal error: {kind}: {_one_line(str(error))}", "PIO_DEBUG=1 shows where", 1)


def _describe_usage(error: click.ClickException) -> Problem:
    context = getattr(error, "ctx", None)
    hint = f"see '{context.command_path if context is not None else 'pio'} --help'"
    if isinstance(error, click.NoSuchOption):
        if error.possibilities:
            hint = f"did you mean {error.possibilities[0]}?"
        return Problem("UsageError", f"no option {error.option_name}", hint, error.exit_code)
    message = _one_line(error.format_message()).removesuffix(".")
    return Problem("UsageError", message[:1].lower() + message[1:], hint, error.exit_code)


def report(error: Exception, *, as_json: bool) -> int:
    """Tell the user about ``error``; with ``PIO_DEBUG`` set, with a traceback.

    Returns:
        The exit code that goes with it.

    Raises:
        BrokenPipeError: Nobody reads standard output any more.
    """
    if os.environ.get("PIO_DEBUG", "") not in {"", "0"}:
        import traceback

        traceback.print_exception(error)
    problem = describe(error)
    hint = f" ({problem.hint})" if problem.hint else ""
    note(f"pio: error: {problem.message}{hint}")
    if as_json and sys.stdout is not None:
        fields = {"type": problem.kind, "message": problem.message, "hint": problem.hint}
        write_json({"error": {**fields, "exit_code": problem.exit_code}})
    return problem.exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split())
