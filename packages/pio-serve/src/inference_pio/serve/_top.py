"""``pio top``: a server's load in a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference_pio.serve._figures import Figures
    from inference_pio.serve._scrape import MetricsSource, Scrape

KEY_VARIABLE = "PIO_SERVE_API_KEY"
_KEPT = 300
_WINDOW = 60
_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_REST_OF_LINE = "\x1b[K"
_REST_OF_SCREEN = "\x1b[J"


@click.command("top", epilog="Example: pio top --url http://127.0.0.1:8000")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The first key in it is sent.  [default: from {KEY_VARIABLE}]",
)
@click.option(
    "--refresh", type=click.FloatRange(min=0.1, max=3600), default=1.0, show_default=True, metavar="S",
    help="Seconds between readings.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Read twice, --refresh apart, show what that says, and end.")
@click.option("--json", "as_json", is_flag=True, help="Write a JSON object per reading, on a line of its own.")
def top(url: str, api_key_file: Path | None, refresh: float, *, once: bool, as_json: bool) -> None:
    """Show what a server is doing: requests, throughput, latencies and cache, from its /metrics.

    Latencies are of the last 60 readings; until there are so many, of all since the server's start. Ctrl-C ends it.
    """
    from inference_pio.serve._scrape import MetricsSource

    readings = Readings(MetricsSource(url, _key(api_key_file)), refresh)
    if once:
        readings.take()
        time.sleep(refresh)
        readings.take()
        _write(readings, as_json=as_json)
    elif as_json or not sys.stdout.isatty():
        while True:
            readings.take()
            _write(readings, as_json=as_json)
            time.sleep(refresh)
    else:
        readings.take()  # before the screen is taken over: what fails now is an error like any other
        with _screen():
            _watch(readings)


class Readings:
    """What was read so far.

    Args:
        source: What is read.
        refresh_s: Seconds between readings.

    Attributes:
        source: The same.
        refresh_s: The same.
        history: Figures, oldest first.
    """

    def __init__(self, source: MetricsSource, refresh_s: float) -> None:
        self.source = source
        self.refresh_s = refresh_s
        self.history: deque[Figures] = deque(maxlen=_KEPT)
        self._window: deque[Scrape] = deque(maxlen=_WINDOW)
        self._last = 0.0

    def take(self) -> None:
        """Read once more.

        Raises:
            ScrapeError: Nothing could be read; the history is as before.
        """
        from inference_pio.serve._figures import figures

        scrape, now = self.source.read(), time.monotonic()
        window = self._window
        self.history.append(
            figures(
                scrape,
                window[-1] if window else None,
                window[0] if len(window) == _WINDOW else None,
                seconds=now - self._last,
            )
        )
        window.append(scrape)
        self._last = now


def _watch(readings: Readings) -> None:
    from inference_pio.serve._scrape import ScrapeError

    problem = ""
    while True:
        size = shutil.get_terminal_size()
        lines = _lines(readings, width=size.columns, problem=problem)[: size.lines - 1]
        drawn = "".join(f"{line}{_REST_OF_LINE}\r\n" for line in lines)
        _put(f"{_HOME}{drawn}{_REST_OF_SCREEN}")
        time.sleep(readings.refresh_s)
        try:
            readings.take()
            problem = ""
        except ScrapeError as error:  # shown; the server may come back
            problem = error.message


def _write(readings: Readings, *, as_json: bool) -> None:
    if as_json:
        _put(json.dumps(readings.history[-1].as_object()) + "\n")
    else:
        _put("".join(f"{line}\n" for line in [*_lines(readings, width=80), ""]))


def _lines(readings: Readings, *, width: int, problem: str = "") -> list[str]:
    from inference_pio.serve._top_view import draw

    wide = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return draw(readings.source.url, list(readings.history), width=width, plain=not wide, problem=problem)


def _put(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, without a cursor; what was there before comes back whatever happens."""
    _put(_ENTER)
    try:
        yield
    finally:
        _put(_LEAVE)


def _key(path: Path | None) -> str | None:
    """The key to send.

    Raises:
        ConfigError: The file cannot be read or holds none, or it is no key.
    """
    from inference_pio.serve._keys import plain_key, read_key_file

    key = os.environ.get(KEY_VARIABLE) if path is None else read_key_file(path)[0]
    return plain_key(key) if key else None
