"""What ``pio serve --replicas`` does with the command's options: some are the router's, the others its replicas'."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_pio.interfaces import ConfigError, UnsupportedError
from inference_pio.kernels import default_threads
from inference_pio.serve._command import KEY_VARIABLE, engine_settings, keys_summary, say, serve_settings
from inference_pio.serve._models.files import memory_budget
from inference_pio.serve._router.cpus import share_cpus
from inference_pio.serve._router.reports import Order
from inference_pio.serve._router.server import RouterServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.serve._router.replicas import Replica
    from inference_pio.serve._router.reports import Loaded


def make_router(models: tuple[str, ...], options: dict[str, Any]) -> RouterServer:
    """The router that the command's options describe.

    Raises:
        PioError: Options or settings that are none, or a system without what replicas need.
    """
    if sys.platform == "win32":
        raise UnsupportedError("--replicas needs unix sockets, which this system lacks", hint="leave it out")
    if options["admin_socket"] is not None:
        raise ConfigError("--admin-socket is of one server, and --replicas makes several", hint="leave one of them out")
    count = options["replicas"]
    # The replicas know what became of a request: they trace it, and the router would only trace it once more.
    told = replace(serve_settings(options, os.environ.get(KEY_VARIABLE)), otel_endpoint=None)
    settings = engine_settings(options)
    threads = settings.threads
    cpus: list[list[int] | None] = [None] * count
    if threads is None:
        machine = default_threads()
        cpus, threads = share_cpus(count, machine)
        if machine < count:
            say(f"{count} replicas share {machine} core{'s' if machine != 1 else ''}: fewer would be faster")
    started = time.monotonic()

    def on_listening(address: str) -> None:
        say(f"listening at {address}, starting {count} replicas")

    def on_ready(loaded: list[Loaded], address: str) -> None:
        names = ", ".join(one.name for one in loaded) or "nothing yet"
        summary = f"{loaded[0].summary}, context {loaded[0].max_model_len}, " if loaded else ""
        seconds = time.monotonic() - started
        say(
            f"serving {names} at {address}/v1 ({count} replicas, each {summary}{keys_summary(told)}; "
            f"ready after {seconds:.1f} s)"
        )

    arguments = models or (settings.model,)
    budget = memory_budget(options["memory_budget"], settings, len(arguments))
    given = {**options, "memory_budget": None if budget is None else budget // count}
    order = replica_orders(models, given, threads)
    return RouterServer(told, cpus, order, on_listening=on_listening, on_ready=on_ready)


def replica_orders(models: tuple[str, ...], options: dict[str, Any], threads: int) -> Callable[[Replica, str], Order]:
    """What makes the orders of replicas.

    Args:
        models: As the command was told.
        options: The command's.
        threads: CPU threads of each.
    """
    given = {**options, **_of_replicas(options, threads)}
    paths = [name for name, value in given.items() if isinstance(value, Path)]
    plain = {name: str(value) if name in paths else value for name, value in given.items()}

    def order(replica: Replica, key: str) -> Order:
        return Order(
            place=replica.place,
            socket=str(replica.socket),
            key=key,
            models=models,
            options=plain,
            paths=paths,
            cpus=replica.cpus,
        )

    return order


def _of_replicas(options: dict[str, Any], threads: int) -> dict[str, Any]:
    """What each replica is told in place of the router."""
    return {
        "host": "127.0.0.1",
        "port": 0,
        "tls_cert": None,
        "tls_key": None,
        "api_key_file": None,
        "insecure_no_auth": False,
        "allowed_hosts": (),
        "max_waiting": -(-options["max_waiting"] // options["replicas"]),
        "tokens_per_minute": None,
        "drain_timeout": 0.0,
        "access_log": False,
        "replicas": 1,
        "threads": str(threads),
    }
