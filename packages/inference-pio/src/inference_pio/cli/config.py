"""``pio config``: the settings that hold."""

from __future__ import annotations

import click

from inference_pio.cli._options import json_option, setting_option


@click.group("config")
def command() -> None:
    """Settings: a flag, else PIO_<KEY>, else the project's file, else the user's, else the default."""


@command.command("show")
@click.option("--origin", is_flag=True, help="Show where each value comes from.")
@setting_option
@json_option
def show(origin: bool, assignments: tuple[str, ...], as_json: bool) -> None:
    """Show all settings as pio run would see them in this folder."""
    from inference_pio.cli._output import write_json, write_table
    from inference_pio.cli._settings import resolve

    rows = resolve({}, assignments).resolved.rows()
    if as_json:
        with_origin = {row.key: {"value": row.value, "origin": row.origin} for row in rows}
        write_json(with_origin if origin else {row.key: row.value for row in rows})
    else:
        write_table([(row.key, _shown(row.value), *([row.origin] if origin else [])) for row in rows])


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
