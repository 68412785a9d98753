"""``pio ls``: the models on this machine."""

from __future__ import annotations

import click

from inference_pio.cli._options import json_option, setting_option


@click.command("ls")
@setting_option
@json_option
def command(assignments: tuple[str, ...], as_json: bool) -> None:
    """List the models on this machine: those of installed distributions, then the fetched ones."""
    from inference_pio.cli._models import known_models
    from inference_pio.cli._output import as_size, note, write_json, write_table
    from inference_pio.cli._settings import resolve
    from inference_pio.config import cache_dir

    models = known_models(cache_dir(resolve({}, assignments).settings))
    if as_json:
        fields = ("name", "bytes", "source", "revision", "path")
        write_json([{name: _plain(getattr(model, name)) for name in fields} for model in models])
    elif models:
        rows = [(model.name, as_size(model.bytes), model.revision[:12], model.source) for model in models]
        write_table(rows, heads=("NAME", "SIZE", "REVISION", "FROM"))
    else:
        note("no models here yet; fetch one with: pio pull owner/name")


def _plain(value: object) -> object:
    return value if isinstance(value, int) else str(value)
