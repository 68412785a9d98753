"""A server as a child process on a loopback port: started, waited for, and ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from inference_pio.benchmarks._serve_http import BaseUrl, HttpClient, ServerUnreachableError
from inference_pio.benchmarks._serve_http_reply import HttpProtocolError
from inference_pio.interfaces import BrokenDependencyError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import BinaryIO

_GRACE_S = 10.0
_POLL_S = 0.1


def serve_command(model: str, port: int) -> list[str]:
    """How ``pio serve`` is started on a loopback port.

    Raises:
        MissingDependencyError: It is not installed.
    """
    if not importlib.metadata.entry_points(group="pio.commands", name="serve"):
        raise MissingDependencyError("pio serve is not installed", hint="pip install pio-serve")
    return [sys.executable, "-m", "inference_pio.cli", "serve", model, "--host", "127.0.0.1", "--port", str(port)]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def running_server(
    command: Sequence[str], port: int, *, headers: Mapping[str, str] | None = None, timeout_s: float = 600.0
) -> AsyncIterator[tuple[BaseUrl, int]]:
    """A server's address and process id, once it is healthy; asked to end afterwards, and then made to.

    Args:
        command: What starts it.
        port: Where it is going to listen.
        headers: Sent when its health is asked for.
        timeout_s: Seconds that it may take to load its model.

    Raises:
        BrokenDependencyError: It ends by itself, or takes too long.
    """
    url = BaseUrl("http", "127.0.0.1", port, "")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PIO_NO_PROGRESS": "1"},
            start_new_session=os.name == "posix",  # Ctrl-C is for us; the server is ended in order
        )
        try:
            await _wait_until_healthy(HttpClient(url, headers or {}, timeout_s=10.0), process, log, timeout_s)
            yield url, process.pid
        finally:
            await asyncio.to_thread(_end, process)


async def _wait_until_healthy(
    http: HttpClient, process: subprocess.Popen[bytes], log: BinaryIO, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokenDependencyError(f"the server ended with code {process.returncode}: {_last_line(log)}")
            with contextlib.suppress(ServerUnreachableError, HttpProtocolError, TimeoutError):  # not there yet
                head = await http.request("GET", "/health", b"", lambda _head, _data, _at: None)
                if head.status == 200:
                    return
                if head.status == 401:
                    raise BrokenDependencyError("the server refuses the key", hint="set PIO_SERVE_API_KEY, or unset it")
            await asyncio.sleep(_POLL_S)
    finally:
        await http.close()
    raise BrokenDependencyError(f"the server was not healthy after {timeout_s:g} s: {_last_line(log)}")


def _last_line(log: BinaryIO) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then end it and whatever it started."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; or, on macOS, only zombies are left
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()
