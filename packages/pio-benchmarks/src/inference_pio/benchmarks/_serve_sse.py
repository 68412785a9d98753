"""Server-sent events (the HTML standard, section 9.2), as far as streams of completions use them: their data."""

from __future__ import annotations

from inference_pio.benchmarks._serve_http_reply import HttpProtocolError

MAX_EVENT_BYTES = 16 << 20


class EventReader:
    """Takes bytes as they come, gives the data of the events that are whole."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that ended in ``data``; comments and events without data give nothing.

        Raises:
            HttpProtocolError: An event has no end.
        """
        data = self._rest + data if self._rest else data
        if b"\r" in data:
            # A pair may be cut in two: the first half waits for the other.
            cut = len(data) - 1 if data.endswith(b"\r") else len(data)
            data = data[:cut].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + data[cut:]
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise HttpProtocolError(f"an event of the stream has more than {MAX_EVENT_BYTES} bytes")
        return [found for event in events if (found := _data(event)) is not None]

    def finish(self) -> list[bytes]:
        """What is left at the end of the stream: an event whose last line end is missing."""
        rest, self._rest = self._rest.rstrip(b"\r\n"), b""
        found = _data(rest)
        return [] if found is None else [found]


def _data(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:  # nearly all of them
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
