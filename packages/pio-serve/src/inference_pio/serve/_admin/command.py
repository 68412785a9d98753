"""``pio admin``: what whoever runs a server may ask of it, over its admin socket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.serve._admin.client import AdminClient

SOCKET_VARIABLE = "PIO_SERVE_ADMIN_SOCKET"

_socket = click.option(
    "--socket",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The server's --admin-socket.  [default: from {SOCKET_VARIABLE}]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Write the server's answer as it is.")


@click.group("admin", epilog="Example: pio admin models --socket /run/user/1000/pio.sock")
def admin() -> None:
    """Run a server that was started with --admin-socket: its models, requests and keys."""


@admin.command("models")
@_socket
@_json
def models(socket: Path | None, *, as_json: bool) -> None:
    """List the models: state, memory, requests, and when each was last asked for."""
    found = _client(socket).get("models")
    if as_json:
        _write_json(found)
        return
    _write_table(("MODEL", "STATE", "MEMORY", "OPEN", "IDLE", "LOADS"), [_row(model) for model in found["data"]])
    bound = "" if found["memory_budget"] is None else f" of {_size(found['memory_budget'])}"
    _note(f"{_size(found['memory_bytes'])}{bound} in use")
    for model in found["data"]:
        if model["problem"] is not None:
            wait = "" if model["retry_s"] is None else f"; tried again for requests in {model['retry_s']:.0f} s"
            _note(f"{model['problem']}{wait}")


@admin.command("load")
@click.argument("model")
@_socket
@_json
def load(model: str, socket: Path | None, *, as_json: bool) -> None:
    """Load MODEL, and wait until it is there."""
    found = _client(socket).post("models", model, "load")
    _tell(found, f"{model} is loaded, with {_size(found['memory_bytes'])}", as_json=as_json)


@admin.command("unload")
@click.argument("model")
@click.option("--wait", is_flag=True, help="Wait until no request uses it.")
@_socket
@_json
def unload(model: str, socket: Path | None, *, wait: bool, as_json: bool) -> None:
    """Unload MODEL; the next request that names it loads it again."""
    found = _client(socket).post("models", model, "unload", query="wait" if wait else "")
    _tell(found, f"{model} is {found['state']}", as_json=as_json)


@admin.command("requests")
@_socket
@_json
def requests(socket: Path | None, *, as_json: bool) -> None:
    """List the requests that are being answered; never what is in them."""
    found = _client(socket).get("requests")
    if as_json:
        _write_json(found)
        return
    rows = [
        (
            request["id"],
            request["model"] or "-",
            request["path"],
            _seconds(request["age_s"]),
            str(request["prompt_tokens"]),
            str(request["completion_tokens"]),
            request["key"],
        )
        for request in found["data"]
    ]
    _write_table(("REQUEST", "MODEL", "PATH", "AGE", "PROMPT", "TOKENS", "KEY"), rows)


@admin.command("cancel")
@click.argument("request_id", metavar="REQUEST")
@_socket
@_json
def cancel(request_id: str, socket: Path | None, *, as_json: bool) -> None:
    """Cancel REQUEST, by its id; its client is told so."""
    found = _client(socket).post("requests", request_id, "cancel")
    _tell(found, f"{request_id} is cancelled", as_json=as_json)


@admin.command("drain")
@_socket
@_json
def drain(socket: Path | None, *, as_json: bool) -> None:
    """End the server once its requests have ended; new ones are refused."""
    found = _client(socket).post("drain")
    _tell(found, f"the server ends once {found['open_requests']} open requests have ended", as_json=as_json)


@admin.command("reload-keys")
@_socket
@_json
def reload_keys(socket: Path | None, *, as_json: bool) -> None:
    """Read the API key file anew; keys that are gone from it open nothing any more."""
    found = _client(socket).post("keys", "reload")
    _tell(found, f"{found['keys']} key{'s' if found['keys'] != 1 else ''}", as_json=as_json)


@admin.command("settings")
@_socket
@_json
def settings(socket: Path | None, *, as_json: bool) -> None:
    """Show what the server was told, without secrets."""
    found = _client(socket).get("settings")
    if as_json:
        _write_json(found)
        return
    bounds = found.pop("bounds")
    rows = [*found.items(), *((f"bounds.{name}", value) for name, value in bounds.items())]
    _write_table(("SETTING", "VALUE"), [(name, json.dumps(value)) for name, value in rows])


def _client(path: Path | None) -> AdminClient:
    """The server's socket.

    Raises:
        InvalidRequestError: No path was given.
    """
    from inference_pio.interfaces import InvalidRequestError
    from inference_pio.serve._admin.client import AdminClient

    if path is None:
        given = os.environ.get(SOCKET_VARIABLE)
        if not given:
            raise InvalidRequestError(
                "no admin socket was given", hint=f"--socket PATH or {SOCKET_VARIABLE}, as pio serve --admin-socket was"
            )
        path = Path(given)
    return AdminClient(path)


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    idle = "-" if model["idle_s"] is None or model["open_requests"] else _seconds(model["idle_s"])
    memory = _size(model["memory_bytes"]) if model["memory_bytes"] else "-"
    return model["id"], model["state"], memory, str(model["open_requests"]), idle, str(model["loads"])


def _tell(found: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        _write_json(found)
    else:
        _note(text)


def _write_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _write_json(found: dict[str, Any]) -> None:
    click.echo(json.dumps(found))


def _note(text: str) -> None:
    click.echo(text, err=True)


def _size(nbytes: int) -> str:
    from inference_pio.serve._models.errors import gib

    return gib(nbytes)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
