"""Reads ``/metrics`` of a server: over HTTP, and from Prometheus' text."""

from __future__ import annotations

import http.client
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from inference_pio.interfaces import InvalidRequestError, PioError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 8 * 1024 * 1024
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


class ScrapeError(PioError):
    """A server that cannot be reached, refuses, or answers with something else than metrics."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations of all models together.

    Attributes:
        buckets: Upper bound, and how many were at most that, ascending; the last bound is infinite.
        sum: Of the observations.
    """

    buckets: tuple[tuple[float, float], ...] = ()
    sum: float = 0.0

    @property
    def count(self) -> float:
        """Observations."""
        return self.buckets[-1][1] if self.buckets else 0.0

    @property
    def mean(self) -> float | None:
        """Their mean; None without any."""
        return self.sum / self.count if self.count > 0 else None

    def quantile(self, share: float) -> float | None:
        """As PromQL's ``histogram_quantile``: evenly spread within an interval, and the last bound above all.

        Args:
            share: 0 to 1.
        """
        if self.count <= 0:
            return None
        rank = share * self.count
        low = below = 0.0
        for bound, total in self.buckets:
            if total >= rank:
                if bound == float("inf"):
                    break
                return low + (bound - low) * ((rank - below) / (total - below) if total > below else 1.0)
            low, below = bound, total
        return low

    def since(self, before: Histogram) -> Histogram:
        """What came after ``before``; all of it where that is of another server or an earlier life of this one."""
        fewer = before.count > self.count or before.sum > self.sum
        if fewer or [bound for bound, _ in before.buckets] != [bound for bound, _ in self.buckets]:
            return self
        pairs = zip(self.buckets, before.buckets, strict=True)
        return Histogram(tuple((bound, now - then) for (bound, now), (_, then) in pairs), self.sum - before.sum)


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a server's metrics said at one moment.

    Attributes:
        samples: Values of each name with their labels.
    """

    samples: Mapping[str, tuple[tuple[Mapping[str, str], float], ...]]

    @property
    def models(self) -> list[str]:
        """Names of the models, ascending."""
        return sorted({labels.get("model_name", "") for labels, _ in self.samples.get("pio:num_requests_running", ())})

    def values(self, name: str) -> list[float]:
        """One per combination of labels."""
        return [value for _, value in self.samples.get(name, ())]

    def total(self, name: str) -> float:
        """Over all labels."""
        return sum(self.values(name))

    def histogram(self, name: str) -> Histogram:
        """That of ``name``, over all models."""
        buckets: defaultdict[float, float] = defaultdict(float)
        for labels, value in self.samples.get(f"{name}_bucket", ()):
            buckets[float(labels.get("le", "+Inf"))] += value
        return Histogram(tuple(sorted(buckets.items())), self.total(f"{name}_sum"))


def parse_metrics(text: str) -> Scrape:
    """Samples of Prometheus' text format 0.0.4, without comments and times.

    Raises:
        ScrapeError: A line that is none of it.
    """
    found: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    for line in text.split("\n"):
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        value = None if match is None else _as_number(match[3])
        if match is None or value is None:
            raise ScrapeError(f"the server's metrics hold {line!r:.120}, which is no sample")
        labels = {key: _ESCAPE.sub(_unescaped, inner) for key, inner in _LABEL.findall(match[2] or "")}
        found[match[1]].append((labels, value))
    return Scrape({name: tuple(samples) for name, samples in found.items()})


class MetricsSource:
    """``/metrics`` of one server. Redirects are not followed: they would take the key elsewhere.

    Args:
        url: ``http://host:port`` or ``https://...``; a last ``/v1`` may be there.
        key: The API key, if the server wants one.
        timeout_s: Seconds that a read may take.

    Raises:
        InvalidRequestError: ``url`` is no URL of a server.
    """

    def __init__(self, url: str, key: str | None, *, timeout_s: float = 10.0) -> None:
        hint = "as in --url http://127.0.0.1:8000"
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidRequestError(f"--url {url!r}: {error}", hint=hint) from error
        # No more may be there than is used: a key in a URL, say, would end up in lists of processes.
        more = parts.query or parts.fragment or parts.username or parts.password
        if parts.scheme not in {"http", "https"} or not host or more or not (url.isascii() and url.isprintable()):
            raise InvalidRequestError(f"--url {url!r} is no URL of a server", hint=hint)
        prefix = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc}{prefix}"
        self._host, self._port, self._path = host, port, f"{prefix}/metrics"
        self._tls = parts.scheme == "https"
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._timeout_s = timeout_s

    def read(self) -> Scrape:
        """What the server counts now.

        Raises:
            ScrapeError: It cannot be reached, refuses, or answers with something else.
        """
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("GET", self._path, headers=self._headers)
            reply = connection.getresponse()
            body = reply.read(MAX_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ScrapeError(f"{self.url} cannot be reached: {reason}", hint="is pio serve running there?") from error
        finally:
            connection.close()
        if reply.status == 401:
            raise ScrapeError(
                f"{self.url}: {_reason(body)}", hint="give the key by --api-key-file or PIO_SERVE_API_KEY"
            )
        if reply.status != 200:
            raise ScrapeError(f"{self.url}/metrics answered with status {reply.status}: {_reason(body)}")
        if len(body) > MAX_BYTES:
            raise ScrapeError(f"{self.url}/metrics is longer than {MAX_BYTES} bytes")
        return parse_metrics(body.decode("utf-8", errors="replace"))


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _reason(body: bytes) -> str:
    """The message of an error reply, as far as it is one of ours."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
