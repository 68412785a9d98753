"""``pio plugins``: what is installed beside the command itself."""

from __future__ import annotations

import click

from inference_pio.cli._options import json_option


@click.command("plugins")
@json_option
def command(as_json: bool) -> None:
    """List model families and commands that installed distributions bring; runs none of their code."""
    from inference_pio.cli._output import note, write_json, write_table
    from inference_pio.cli._plugins import installed_plugins

    found = installed_plugins()
    if as_json:
        write_json(found.as_object())
        return
    rows = [("model", family.name, ", ".join(family.architectures), family.source) for family in found.families]
    rows += [("command", name, "", source) for name, source in found.commands]
    if rows:
        write_table(rows, heads=("KIND", "NAME", "ARCHITECTURES", "FROM"))
    for problem in found.problems:
        note(f"problem: {problem}")
