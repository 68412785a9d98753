"""``pio show``: what a model is, from its headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inference_pio.cli._options import ModelName, json_option, setting_option

if TYPE_CHECKING:
    from inference_pio.core import ModelReport


@click.command("show")
@click.argument("model", required=False, type=ModelName())
@setting_option
@json_option
def command(model: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Describe MODEL (by default the one that pio run would use).

    Only headers and configs are read: no tensor is loaded, nothing is fetched.
    """
    from inference_pio.cli._output import write_json, write_table
    from inference_pio.cli._settings import resolve
    from inference_pio.config import cache_dir
    from inference_pio.core import inspect_model

    settings = resolve({} if model is None else {"model": model}, assignments).settings
    report = inspect_model(settings.model, cache=cache_dir(settings), ignore_unknown_keys=settings.ignore_unknown_keys)
    if as_json:
        write_json(_as_object(report))
    else:
        write_table(_rows(report))


def _as_object(report: ModelReport) -> dict[str, Any]:
    from dataclasses import asdict

    fields = asdict(report)
    context = report.context_length
    cache = {dtype: nbytes * context for dtype, nbytes in report.kv_bytes_per_token.items()}
    return {**fields, "path": str(report.path), "kv_bytes_full_context": cache}


def _rows(report: ModelReport) -> list[tuple[str, str]]:
    from inference_pio.cli._output import as_count, as_size

    stored = ", ".join(f"{use.encoding} {as_size(use.nbytes)} in {use.tensors}" for use in report.encodings)
    window = f", window of {report.sliding_window}" if report.sliding_window is not None else ""
    heads = f"{report.num_heads} heads over {report.num_kv_heads} KV heads of {report.head_dim}{window}"
    rows = [
        ("model", report.name),
        ("path", str(report.path)),
        ("architecture", f"{report.architecture} (from {report.plugin})"),
        ("parameters", f"{as_count(report.parameters)}{', head tied to the embedding' if report.tied_head else ''}"),
        ("layers", f"{report.num_layers} of width {report.hidden_size}"),
        ("attention", heads),
        ("vocabulary", str(report.vocab_size)),
        ("context", f"{report.context_length} tokens"),
        ("chat template", "yes" if report.chat_template else "no, so pio run needs --raw"),
        ("stored", f"{as_size(report.stored_bytes)} in {report.format}: {stored}"),
    ]
    for dtype, nbytes in report.weight_bytes.items():
        per_token = report.kv_bytes_per_token[dtype]
        cache = f"{as_size(per_token)} of cache per token, {as_size(per_token * report.context_length)} for all of it"
        rows.append((f"memory in {dtype}", f"{as_size(nbytes)} of weights, {cache}"))
    return rows
