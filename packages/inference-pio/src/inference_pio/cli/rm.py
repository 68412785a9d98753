"""``pio rm``: delete fetched models."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from inference_pio.cli._options import ModelName, json_option, setting_option

if TYPE_CHECKING:
    from inference_pio.core.hub import LocalModel


@click.command("rm")
@click.argument("models", nargs=-1, required=True, type=ModelName(), metavar="MODEL...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@setting_option
@json_option
def command(models: tuple[str, ...], yes: bool, assignments: tuple[str, ...], as_json: bool) -> None:
    """Delete fetched MODELs from this machine.

    On a terminal it asks first; elsewhere it needs --yes.
    """
    from inference_pio.cli._models import known_models
    from inference_pio.cli._output import as_size, note, write_json
    from inference_pio.cli._settings import resolve
    from inference_pio.config import cache_dir
    from inference_pio.core import hub
    from inference_pio.interfaces import InvalidRequestError

    cache = cache_dir(resolve({}, assignments).settings)
    fetched = {model.name: model for model in hub.list_models(cache)}
    for shipped in known_models(cache):
        if shipped.name in models and shipped.name not in fetched:
            raise InvalidRequestError(
                f"{shipped.name!r} ships in the distribution {shipped.source}", hint=f"pip uninstall {shipped.source}"
            )
    removed: list[LocalModel] = []
    for name in dict.fromkeys(models):
        if name in fetched and not yes and not _confirmed(fetched[name]):
            continue
        removed.append(hub.remove(name, cache))
        if not as_json:
            note(f"removed {name}, {as_size(removed[-1].bytes)}")
    if as_json:
        write_json([{"name": model.name, "bytes": model.bytes} for model in removed])


def _confirmed(model: LocalModel) -> bool:
    from inference_pio.cli._output import as_size, is_terminal
    from inference_pio.interfaces import InvalidRequestError

    if not is_terminal(sys.stdin):
        raise InvalidRequestError(f"{model.name} is not removed: nobody can be asked", hint="give --yes")
    return click.confirm(f"remove {model.name} ({as_size(model.bytes)})?", err=True)
