"""One replica: ``pio serve`` as the child of a router, at a socket that only the router reaches.

Run as ``python -m inference_pio.serve._router.replica``. Its order comes through standard input, which the router keeps
open: when that ends, the router has, and so does the replica, whatever it is doing. What it has to tell goes to
standard output.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from inference_pio.interfaces import PioError
from inference_pio.serve._app import build_router
from inference_pio.serve._bounds import BodyBounds
from inference_pio.serve._context import context_of, header
from inference_pio.serve._errors import ApiError
from inference_pio.serve._keys import KeyRing
from inference_pio.serve._limits import KeyLimits
from inference_pio.serve._outermost import Outermost, Watch
from inference_pio.serve._router.reports import (
    KEY_HEADER,
    LABEL_HEADER,
    STOP,
    Failed,
    Leaving,
    Loaded,
    Report,
    Spent,
    order_from,
    to_line,
)
from inference_pio.serve._routes import ROUTES
from inference_pio.serve._scopes import PlaceMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._server_state import ServerState


class RouterCheck:
    """Lets the router in, and takes from it whose request it is; what else guards a server, the router does.

    Args:
        app: What is further in.
        key: What the router shows.
        names: Learns what the router's keys are called.
    """

    def __init__(self, app: ASGIApp, key: str, names: ToldKeys) -> None:
        self._app = app
        self._names = names
        self._digest = hashlib.sha256(f"Bearer {key}".encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: 401.
        """
        given = hashlib.sha256(header(scope, b"authorization") or b"").digest()
        if not hmac.compare_digest(given, self._digest):
            raise ApiError(401, "only the router may ask", kind="authentication_error", code="invalid_api_key")
        key_id = header(scope, KEY_HEADER)
        if key_id is not None:
            context_of(scope).key_id = key_id.decode()
            self._names.learn(key_id.decode(), (header(scope, LABEL_HEADER) or key_id).decode())
        await self._app(scope, receive, send)


class ToldKeys(KeyRing):
    """Keys that another process checks: of those that it let in, what they are called."""

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[str, str] = {}

    def learn(self, key_id: str, label: str) -> None:
        """The keys of this id are called so; there are as many as the router has."""
        self._labels[key_id] = label

    def label(self, key_id: str) -> str:
        """What metrics and traces call a key."""
        return self._labels.get(key_id) or super().label(key_id)


class Reporter:
    """Tells the router. From any thread.

    Args:
        file: Where lines go.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def __call__(self, report: Report) -> None:
        """Tell ``report``; nobody hears it if the router has ended."""
        with self._lock, suppress(BrokenPipeError):
            self._file.write(to_line(report))
            self._file.flush()


class ReportedLimits(KeyLimits):
    """Bounds nobody: the router does, over all replicas, and is told what is used.

    Args:
        report: Tells it.
    """

    def __init__(self, report: Reporter) -> None:
        super().__init__(sys.maxsize, None)
        self._report = report

    def spend(self, key_id: str, tokens: int) -> None:
        """``key_id`` has used ``tokens``."""
        self._report(Spent(key_id=key_id, tokens=tokens))


def replica_app(server: ServerState, key: str) -> ASGIApp:
    """The application of a replica: the routes, for a router alone. It traces, as it knows what becomes of requests."""
    names = ToldKeys()
    watch = Watch(server.http, PlaceMap(ROUTES), names, server.tracing)
    return Outermost(RouterCheck(BodyBounds(build_router(server, ROUTES), server.settings.bounds), key, names), watch)


class Lifeline:
    """What comes from the router. When nothing can come any more the process ends, whatever it is doing.

    Attributes:
        order: What the replica is to be.
        on_stop: Called, in a thread of its own, when the router says so.
    """

    def __init__(self) -> None:
        # Without a buffer, whose lock a thread that waits in it would take along to the end of the process.
        self._pipe = os.fdopen(os.dup(0), "rb", buffering=0)
        self.order = order_from(self._pipe.readline())
        self.on_stop: Callable[[], None] = self._end
        threading.Thread(target=self._follow, name="pio-router", daemon=True).start()

    def _follow(self) -> None:
        while line := self._pipe.readline():
            if line == STOP:
                self.on_stop()
        self._end()

    def _end(self) -> None:
        place = Path(self.order.socket)
        with suppress(OSError):  # the router, or the last of its replicas, cleans up
            place.unlink(missing_ok=True)
            place.parent.rmdir()
        os._exit(0)


def main() -> None:
    """Be a replica until the router says otherwise or ends."""
    # What libraries print must not come between the reports.
    report = Reporter(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    lifeline = Lifeline()
    if lifeline.order.cpus is not None:
        os.sched_setaffinity(0, lifeline.order.cpus)
    try:
        failure = _serve(lifeline, report)
    except PioError as error:
        failure = error
    if isinstance(failure, PioError):
        report(Failed(message=failure.message, hint=failure.hint, exit_code=failure.exit_code))
        sys.exit(failure.exit_code)
    if failure is not None:
        raise failure


def _serve(lifeline: Lifeline, report: Reporter) -> BaseException | None:
    """Serve; why that ended, if something went wrong."""
    from inference_pio.serve._command import make_server, set_up_log

    order = lifeline.order
    set_up_log(access=False, name=f"replica {order.place}: ")

    def on_listening(_address: str) -> None:
        # In place of uvicorn's, which would stop taking requests before the router has stopped sending any.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, report, Leaving())
        lifeline.on_stop = server.drain

    def on_ready(served: ServedModel, _address: str) -> None:
        llm = served.llm
        report(Loaded(name=served.name, summary=llm.executor_summary, max_model_len=llm.max_model_len))

    options = {name: Path(value) if name in order.paths else value for name, value in order.options.items()}
    server = make_server(order.models, options, on_listening=on_listening, on_ready=on_ready)
    server.config.app = replica_app(server.state, order.key)
    server.state.limits = ReportedLimits(report)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(order.socket)
        server.run(sockets=[listener])
    return server.failure


if __name__ == "__main__":
    main()
