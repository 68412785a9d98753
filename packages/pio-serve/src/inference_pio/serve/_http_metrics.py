"""What is counted of requests over HTTP, under the names that dashboards for other servers have.

``http_*`` are the names of prometheus-fastapi-instrumentator, which vLLM's servers have too; ``pio:`` are ours. Labels
have few values: routes as the table spells them, known methods, classes of statuses, names of the key file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.core import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator

Metric = Counter | Gauge | Histogram
Family = tuple[Metric, list[tuple[dict[str, str], Metric]]]
"""One that says name, help and type, and those that were counted, with their labels."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ERRORS = (400, 401, 403, 404, 408, 413, 429, 500, 503)


class HttpMetrics:
    """Counts requests from when they come to when they are over. For one event loop."""

    def __init__(self) -> None:
        self._open = Gauge("http_requests_inprogress", "Requests that are being answered, beside this one.")
        self._requests: dict[tuple[str, str, str], Counter] = {}
        self._seconds: dict[tuple[str, str], Histogram] = {}
        self._errors = Counter("pio:http_error_replies_total", "Replies with a status of 400 and above.", "code")
        self._keys = Counter("pio:key_requests_total", "Requests of each named key.", "key")
        self._tokens = Counter("pio:key_tokens_total", "Tokens of prompts and answers of each named key.", "key")
        for status in _ERRORS:
            self._errors.add(0, str(status))

    def begun(self) -> None:
        """A request has come."""
        self._open.value += 1

    def ended(self, *, handler: str, method: str, status: int, seconds: float, key: str) -> None:
        """It is over: answered, or its client went away.

        Args:
            handler: The route, as the table spells it.
            method: Of the request.
            status: Of the reply; 0 if there was none.
            seconds: From its headers to the last byte.
            key: What metrics call its key.
        """
        self._open.value -= 1
        method = method if method in _METHODS else "other"
        kind = f"{status // 100}xx" if status else "none"
        counter = self._requests.get((handler, method, kind))
        if counter is None:
            counter = self._requests[handler, method, kind] = _requests()
        counter.add()
        times = self._seconds.get((handler, method))
        if times is None:
            times = self._seconds[handler, method] = _seconds()
        times.observe(seconds)
        if status >= 400:
            self._errors.add(1, str(status))
        self._keys.add(1, key)

    def spent(self, key: str, tokens: int) -> None:
        """A key has used ``tokens``."""
        self._tokens.add(tokens, key)

    def families(self) -> Iterator[Family]:
        """All that was counted, as a request sees it that asks for it."""
        yield self._open, [({}, Gauge(self._open.name, self._open.help, self._open.value - 1))]
        yield (
            _requests(),
            [
                ({"handler": handler, "method": method, "status": kind}, counter)
                for (handler, method, kind), counter in self._requests.items()
            ],
        )
        yield (
            _seconds(),
            [({"handler": handler, "method": method}, times) for (handler, method), times in self._seconds.items()],
        )
        for counter in (self._errors, self._keys, self._tokens):
            yield counter, [({}, counter)]


def _requests() -> Counter:
    return Counter("http_requests_total", "Requests that are over; status 'none' where the client went away first.")


def _seconds() -> Histogram:
    return Histogram("http_request_duration_seconds", "From a request's headers to the end of its reply.", _SECONDS)
