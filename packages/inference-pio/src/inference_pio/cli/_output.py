"""What is written where: answers on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_BINARY_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_COUNT_UNITS = ("", "K", "M", "B", "T")


# Control characters move cursors, rename windows and answer for the user: models and files are not trusted that far.
_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
_SHOWN = {code: "" if chr(code) == "\r" else f"\\x{code:02x}" for code in _CONTROLS}
_ESCAPED = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def write(text: str) -> None:
    """Write ``text`` to standard output now, so that a reader sees each token as it comes.

    What the reader's encoding cannot express is replaced rather than fatal, since the model chooses the characters. A
    terminal gets control characters spelled out; a pipe or a file gets the text as it is.
    """
    stream = sys.stdout
    if is_terminal(stream):
        text = printable(text)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, errors="replace").decode(encoding))
    stream.flush()


def write_json(value: object) -> None:
    """Write one JSON document on one line to standard output."""
    wide = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    write(json.dumps(value, ensure_ascii=not wide).translate(_ESCAPED) + "\n")


def note(text: str) -> None:
    """Write a line to standard error."""
    if sys.stderr is not None:
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


class _Notes(logging.Handler):
    """What the libraries log, as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def show_warnings(*, wanted: bool) -> None:
    """Have what Inference-PIO's libraries warn of written to standard error, or, if it is not ``wanted``, nowhere."""
    logger = logging.getLogger("inference_pio")
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes(logging.WARNING))
    logger.setLevel(logging.WARNING if wanted else logging.CRITICAL)


def printable(text: str) -> str:
    """``text`` with its control characters, but line ends and tabs, spelled out."""
    return text.translate(_SHOWN)


def is_terminal(stream: object) -> bool:
    """Whether a person reads, or types, ``stream``."""
    return stream is not None and hasattr(stream, "isatty") and bool(stream.isatty())


def shows_progress(*, wanted: bool) -> bool:
    """Whether to draw progress: it is wanted, ``PIO_NO_PROGRESS`` and ``TERM`` allow it, and a person sees it."""
    forbidden = os.environ.get("PIO_NO_PROGRESS", "") not in {"", "0"} or os.environ.get("TERM") == "dumb"
    return wanted and not forbidden and is_terminal(sys.stderr)


def write_table(rows: Sequence[Sequence[str]], *, heads: Sequence[str] | None = None) -> None:
    """Write left-aligned columns to standard output."""
    lines = [*([list(heads)] if heads else []), *(list(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        write("  ".join(cells).rstrip() + "\n")


def as_size(count: float) -> str:
    """Bytes for people: ``"91.4 MiB"``."""
    return _scaled(count, 1024, _BINARY_UNITS)


def as_count(count: float) -> str:
    """A number for people: ``"134.5M"``."""
    return _scaled(count, 1000, _COUNT_UNITS).replace(" ", "")


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    value, unit = float(count), 0
    while value >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f"{value:.0f} {units[unit]}".rstrip() if unit == 0 else f"{value:.1f} {units[unit]}"
