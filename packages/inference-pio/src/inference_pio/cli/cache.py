"""``pio cache``: packed copies of weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from inference_pio.cli._options import json_option, setting_option

if TYPE_CHECKING:
    from pathlib import Path


@click.group("cache")
def command() -> None:
    """Copies of weights, packed for the native executor when a model is first loaded, so that it starts faster.

    Nothing is lost with them: a copy that is not there is made again.
    """


@command.command("list")
@setting_option
@json_option
def list_copies(assignments: tuple[str, ...], as_json: bool) -> None:
    """List packed copies, the one used last first."""
    from inference_pio.cli._output import as_size, note, write_json, write_table
    from inference_pio.core.packed import list_packed

    entries = list_packed(_folder(assignments))
    if as_json:
        fields = ("key", "label", "nbytes", "used")
        write_json([{name: getattr(entry, name) for name in fields} for entry in entries])
    elif entries:
        rows = [
            (entry.key[:12], as_size(entry.nbytes), _day(entry.used), entry.label or "damaged") for entry in entries
        ]
        write_table(rows, heads=("KEY", "SIZE", "USED", "MODEL"))
        note(f"{as_size(sum(entry.nbytes for entry in entries))} in all")
    else:
        note("no packed copies here")


@command.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@setting_option
@json_option
def remove(names: tuple[str, ...], assignments: tuple[str, ...], as_json: bool) -> None:
    """Delete the packed copies of models; NAME is what list shows as MODEL or the beginning of a KEY."""
    from inference_pio.cli._output import as_size, note, write_json
    from inference_pio.core.packed import remove_packed

    folder = _folder(assignments)
    removed = [entry for name in dict.fromkeys(names) for entry in remove_packed(name, folder)]
    if as_json:
        write_json([{"key": entry.key, "label": entry.label, "nbytes": entry.nbytes} for entry in removed])
    else:
        for entry in removed:
            note(f"removed {entry.key[:12]} {entry.label}, {as_size(entry.nbytes)}")


@command.command("clear")
@setting_option
@json_option
def clear(assignments: tuple[str, ...], as_json: bool) -> None:
    """Delete all packed copies."""
    from inference_pio.cli._output import as_size, note, write_json
    from inference_pio.core.packed import clear_packed

    freed = clear_packed(_folder(assignments))
    if as_json:
        write_json({"bytes": freed})
    else:
        note(f"removed {as_size(freed)}")


def _folder(assignments: tuple[str, ...]) -> Path:
    from inference_pio.cli._settings import resolve
    from inference_pio.config import cache_dir

    return cache_dir(resolve({}, assignments).settings)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
