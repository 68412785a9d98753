"""``pio pull``: fetch a model from a hub."""

from __future__ import annotations

import click

from inference_pio.cli._options import json_option, setting_option


@click.command("pull")
@click.argument("model")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.")
@click.option("--offline", is_flag=True, help="Do not use the network: succeed only if the model is here.")
@click.option("--progress/--no-progress", default=True, help="Show progress on a terminal.")
@click.option("-q", "--quiet", is_flag=True, help="Write nothing but errors.")
@setting_option
@json_option
def command(
    model: str,
    revision: str | None,
    offline: bool,
    progress: bool,
    quiet: bool,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fetch MODEL, a hub id such as owner/name.

    Of several GGUF files, owner/name:TAG takes one, such as owner/name:Q8_0. Only weights in formats that hold no code
    (safetensors, GGUF) and their config, tokenizer and licence files are fetched, and they appear only when complete.
    Private and gated models need HF_TOKEN.
    """
    from inference_pio.cli._output import as_size, note, write_json
    from inference_pio.cli._progress import byte_progress
    from inference_pio.cli._settings import resolve
    from inference_pio.config import cache_dir
    from inference_pio.core import hub

    settings = resolve({}, assignments).settings
    with byte_progress(f"fetching {model}", wanted=progress and not quiet) as callback:
        local = hub.pull(
            model,
            revision=revision,
            cache_dir=cache_dir(settings),
            endpoint=settings.hub_endpoint,
            offline=offline,
            progress=callback,
        )
    if as_json:
        fields = {"name": local.name, "bytes": local.bytes, "revision": local.revision, "source": local.source}
        write_json({**fields, "path": str(local.path)})
    elif not quiet:
        note(f"{local.name} {local.revision[:12]}, {as_size(local.bytes)}, is in {local.path}")
