"""A real package index on loopback, and a proxy before it that can hold an upload still at any byte."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from release_index import Index

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HOST = "127.0.0.1"
_SECONDS_TO_START = 30
_SERVE = """
import sys, pypiserver, waitress
folder, host, port = sys.argv[1:]
index = pypiserver.app(roots=[folder], disable_fallback=True, authenticate=[], password_file=".")
waitress.serve(index, host=host, port=int(port))
"""
_CHUNK = 2**12


@contextmanager
def running_index(packages: Path) -> Iterator[str]:
    """A pypiserver over the folder ``packages``, which never overwrites and knows no other index; its address.

    Behind waitress, which hands over whole uploads alone: the server that it has by itself stores what came of one that
    was cut off, which no run could complete.

    Raises:
        RuntimeError: It did not start, or ended before it was told to; in its own words.
    """
    packages.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    log = packages.with_suffix(".log")
    with log.open("wb") as output:
        command = [sys.executable, "-c", _SERVE, str(packages), _HOST, str(port)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            _await_port(port, process, log)
            yield f"http://{_HOST}:{port}/"
            if process.poll() is not None:
                raise RuntimeError(f"the index ended by itself: {log.read_text(encoding='utf-8')}")
        finally:
            process.terminate()
            process.wait()


class Gate:
    """Counts uploads through a proxy, and holds one of them.

    Args:
        uploads: How many go through before one is held.
        part: Part of the held upload's body that goes on to the index: 0 for none, not even its head.
    """

    def __init__(self, uploads: int, part: float) -> None:
        self._left = uploads
        self._part = part
        self._lock = threading.Lock()
        self.held = threading.Event()
        self.dropped = threading.Event()

    def allowed(self, length: int) -> int:
        """Bytes of the next body, of ``length`` bytes, that may go on: all, until one is held."""
        with self._lock:
            self._left -= 1
            return length if self._left >= 0 else int(length * self._part)

    def hold(self) -> None:
        """Tell that an upload is held, and stay until it is dropped."""
        self.held.set()
        self.dropped.wait()


@contextmanager
def running_proxy(index: str, gate: Gate) -> Iterator[str]:
    """A proxy before ``index`` that obeys ``gate``; its address."""
    host, _, port = index.removeprefix("http://").rstrip("/").partition(":")

    class Handler(_Handler):
        upstream = (host, int(port))
        holding = gate

    server = ThreadingHTTPServer((_HOST, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{_HOST}:{server.server_address[1]}/"
    finally:
        gate.dropped.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Forwards one request at a time; hop by hop headers are its own."""

    upstream: tuple[str, int]
    holding: Gate

    def do_GET(self) -> None:
        """Forward a question."""
        connection = http.client.HTTPConnection(*self.upstream)
        connection.request("GET", self.path, headers=self._headers())
        self._answer(connection)

    def do_POST(self) -> None:
        """Forward an upload, up to where the gate holds it."""
        length = int(self.headers["Content-Length"])
        allowed = self.holding.allowed(length)
        if not allowed:
            self.holding.hold()
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(*self.upstream)
        connection.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
        for key, value in self._headers().items():
            connection.putheader(key, value)
        connection.endheaders()
        sent = 0
        while sent < allowed:
            chunk = self.rfile.read(min(_CHUNK, allowed - sent))
            if not chunk:
                break
            connection.send(chunk)
            sent += len(chunk)
        if sent < length:
            self.holding.hold()
            connection.close()
            self.close_connection = True
            return
        self._answer(connection)

    def log_message(self, *_: object) -> None:
        """Say nothing: the index writes its own log."""

    def _headers(self) -> dict[str, str]:
        own = {"connection", "keep-alive", "transfer-encoding"}
        return {key: value for key, value in self.headers.items() if key.lower() not in own}

    def _answer(self, connection: http.client.HTTPConnection) -> None:
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self.send_response_only(answer.status, answer.reason)
        for key, value in answer.getheaders():
            if key.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def held_files(index: str, names: list[str]) -> dict[str, dict[str, str]]:
    """Files of each project on ``index``, and their hashes."""
    reader = Index(f"{index}simple/")
    return {name: {file.name: file.sha256 for file in reader.files(name).values()} for name in names}


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as server:
        return int(server.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            socket.create_connection((_HOST, port), timeout=1).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the index did not start: {log.read_text(encoding='utf-8')}") from error
            time.sleep(0.1)
        else:
            return
