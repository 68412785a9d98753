"""Asks an OpenAI-compatible server: one request at a time over the standard library's HTTP, answers as they come."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from inference_pio.cli._http_errors import refusal, unreachable
from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from socket import socket
    from types import TracebackType

    from inference_pio.cli._endpoint import Endpoint

CONNECT_S = 15.0
SILENCE_S = 600.0
"""A long prompt on a slow machine takes minutes, and not every server sends comments meanwhile."""
PATIENCE_S = 60.0
"""How long a server that is busy or still loads its model is asked again."""
_LINE_BYTES = 4 * 2**20
_BODY_BYTES = 4 * 2**20


class HttpServer:
    """A server.

    Args:
        endpoint: Where it is, and its key.
        say: Called with what there is to say while it is waited for.
    """

    def __init__(self, endpoint: Endpoint, say: Callable[[str], None]) -> None:
        self.endpoint = endpoint
        self._say = say
        # A redirect would take the key and the conversation elsewhere, and a proxy has no business on this machine.
        proxies = urllib.request.ProxyHandler({} if endpoint.is_here else None)
        self._opener = urllib.request.OpenerDirector()
        errors = urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler()
        for handler in (proxies, _PlainHandler(), _TlsHandler(), *errors):
            self._opener.add_handler(handler)

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """The document at ``path``.

        Raises:
            PioError: There is none.
        """
        with self._open(path, None) as reply:
            try:
                return json.loads(reply.read(_BODY_BYTES))
            except (ValueError, RecursionError):
                raise PioError(f"{self.endpoint.url}{path} is not JSON", hint="is that the API's address?") from None
            except (OSError, http.client.HTTPException) as error:
                raise unreachable(self.endpoint, error) from error

    def stream(self, path: str, body: Mapping[str, object]) -> EventReader:
        """What the server answers to ``body``, event by event.

        Raises:
            PioError: It refuses, or cannot be reached.
        """
        reply = self._open(path, json.dumps(body).encode())
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            reply.close()
            raise PioError(f"{self.endpoint.url} answers with {kind or 'something'!r} instead of a stream of events")
        return EventReader(self.endpoint, reply)

    def _open(self, path: str, body: bytes | None) -> http.client.HTTPResponse:
        """The reply, if it is a good one; asked for again while the server says to come back later."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._open_once(path, body)
            except urllib.error.HTTPError as error:
                with error:
                    wait = _retry_after(error)
                    if wait is None or time.monotonic() + wait > deadline:
                        raise refusal(self.endpoint, error) from None
            self._say(f"the server is busy or still loads its model; asking again in {wait:g} s")
            time.sleep(wait)

    def _open_once(self, path: str, body: bytes | None) -> http.client.HTTPResponse:
        headers = {"accept": "text/event-stream" if body else "application/json", "user-agent": "pio"}
        if body is not None:
            headers["content-type"] = "application/json"
        request = urllib.request.Request(self.endpoint.url + path, body, headers)  # noqa: S310 - http or https, as checked
        if self.endpoint.key is not None:
            request.add_unredirected_header("authorization", f"Bearer {self.endpoint.key}")
        try:
            reply: http.client.HTTPResponse = self._opener.open(request, timeout=CONNECT_S)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            reason = error.reason if isinstance(error.reason, Exception) else OSError(str(error.reason))
            raise unreachable(self.endpoint, reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.endpoint, error) from error
        return reply


class EventReader:
    """Data of server-sent events, in order; leaving its ``with`` block ends the connection.

    Args:
        endpoint: Whose they are.
        reply: What it sends.
    """

    def __init__(self, endpoint: Endpoint, reply: http.client.HTTPResponse) -> None:
        self._endpoint = endpoint
        self._reply = reply

    def __iter__(self) -> Iterator[str]:
        """Each event's data (WHATWG HTML, section 9.2.6); comments and other fields are passed over.

        Raises:
            PioError: The connection breaks, or what comes is no such stream.
        """
        data: list[str] = []
        while line := self._line():
            text = line.rstrip("\r\n")
            if not text and data:
                yield "\n".join(data)
                data = []
            name, _, value = text.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))

    def _line(self) -> str:
        try:
            line = self._reply.readline(_LINE_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self._endpoint, error) from error
        if len(line) == _LINE_BYTES:
            raise PioError(f"{self._endpoint.url} sends a line of more than {_LINE_BYTES} bytes")
        return line.decode("utf-8", errors="replace")

    def close(self) -> None:
        """End the connection, which tells the server to stop. Harmless when called twice."""
        self._reply.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds after which to ask again; None if the server does not say, or the answer would be the same."""
    text = error.headers.get("retry-after", "").strip()
    if error.code not in {429, 503} or not text.isascii() or not text.isdigit():
        return None
    return max(float(text), 1.0)


class _PlainConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _connected(self.sock)


class _TlsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _connected(self.sock)


def _connected(sock: socket) -> None:
    """What is waited for from now on is the model."""
    sock.settimeout(SILENCE_S)


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PlainConnection, req)


class _TlsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, req, context=ssl.create_default_context())
