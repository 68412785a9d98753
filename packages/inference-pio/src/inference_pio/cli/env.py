"""``pio env``: what a bug report should say about this installation and machine."""

from __future__ import annotations

import click

from inference_pio.cli._options import json_option


@click.command("env")
@json_option
def command(as_json: bool) -> None:
    """Describe this installation and machine; imports no torch and shows no keys or tokens."""
    from inference_pio.cli._machine import describe_installation
    from inference_pio.cli._output import write_json, write_table

    facts = describe_installation()
    if as_json:
        write_json(facts)
        return
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{key}: {name}", str(item)) for name, item in value.items()] or [(key, "none")]
        elif isinstance(value, list):
            rows.append((key, " ".join(map(str, value)) or "none"))
        else:
            rows.append((key, "-" if value is None else str(value)))
    write_table(rows)
