"""Text for people: numbers, tables, and what goes to which stream."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Names come out of files: what moves cursors or renames windows is spelled out.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def printable(text: str) -> str:
    """``text`` on one line, with its control characters spelled out."""
    return text.translate(_SHOWN)


def number(value: float) -> str:
    """A number in three or four digits: ``"0.0123"``, ``"1.23"``, ``"123"``, ``"12,346"``."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    if size >= 0.001:
        decimals = 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
        return f"{value:.{decimals}f}"
    return f"{value:.2e}"


def table(rows: Sequence[Sequence[str]], *, heads: Sequence[str], numeric: Sequence[str] = ()) -> str:
    """Columns of printable text, one line per row; those named in ``numeric`` are flush right."""
    lines = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    right = [head in numeric for head in heads]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def write(text: str) -> None:
    """Write a line to standard output; what its encoding lacks is replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding) + "\n")
    sys.stdout.flush()


def write_json(value: object) -> None:
    """Write one JSON document on one line to standard output."""
    write(json.dumps(value, allow_nan=False))


def note(text: str) -> None:
    """Write a line to standard error."""
    if sys.stderr is not None:
        _write_error(printable(text) + "\n")


def shows_progress() -> bool:
    """Whether a person watches standard error, and wants to see lines come and go there."""
    forbidden = os.environ.get("PIO_NO_PROGRESS", "") not in {"", "0"} or os.environ.get("TERM") == "dumb"
    return not forbidden and sys.stderr is not None and sys.stderr.isatty()


def transient(text: str) -> None:
    """Replace the last line of standard error by ``text``, if a person watches; an empty text erases it."""
    if shows_progress():
        _write_error(f"\r\x1b[2K{printable(text)}")


def _write_error(text: str) -> None:
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
    sys.stderr.flush()
