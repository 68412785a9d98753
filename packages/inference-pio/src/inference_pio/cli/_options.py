"""Options that several commands share. A value stays text here: its type and bounds are the settings' business."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Decorated = Callable[..., Any]

SETTING_OPTIONS = (
    "model", "system", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "executor", "device", "dtype",
    "threads", "max_model_len",
)  # fmt: skip
"""Options whose value is the setting of the same name."""


class ModelName(click.types.StringParamType):
    """A model argument: any text, completed from the models on this machine."""

    name = "model"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002 - the same
        incomplete: str,
    ) -> list[CompletionItem]:
        """Registered and fetched models; files where the text looks like a path."""
        if incomplete.startswith((".", "/", "~")):
            return [CompletionItem(incomplete, type="file")]
        from inference_pio.cli._models import known_models
        from inference_pio.config import cache_dir, load_settings

        models = known_models(cache_dir(load_settings().settings))
        return [CompletionItem(model.name) for model in models if model.name.startswith(incomplete)]


def model_options(function: Decorated) -> Decorated:
    """Which model, and where and how it runs."""
    return _apply(
        function,
        click.option("-m", "--model", type=ModelName(), metavar="MODEL", help="Name, folder, GGUF file or hub id."),
        click.option("--executor", metavar="NAME", help="auto, native (fused CPU programs) or torch."),
        click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ..."),
        click.option("--dtype", metavar="DTYPE", help="auto, float32, bfloat16, float16 or int8."),
        click.option("--threads", metavar="N", help="CPU threads."),
        click.option("--max-model-len", metavar="N", help="Context length in tokens."),
    )


def sampling_options(function: Decorated) -> Decorated:
    """How the model answers."""
    return _apply(
        function,
        click.option("-s", "--system", metavar="TEXT", help="System prompt."),
        click.option("--max-tokens", metavar="N", help="New tokens at most; 'none' for all that fit. [default: 512]"),
        click.option("--temperature", metavar="T", help="Divides the logits; 0 takes the likeliest token."),
        click.option("--top-k", metavar="K", help="Keep the K likeliest tokens."),
        click.option("--top-p", metavar="P", help="Keep the smallest set of tokens with probability P."),
        click.option("--min-p", metavar="P", help="Keep tokens at least P times as likely as the likeliest."),
        click.option("--seed", metavar="N", help="Makes the answer repeatable."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; may be repeated."),
    )


def setting_option(function: Decorated) -> Decorated:
    """Any setting or sampling parameter by name."""
    return _apply(
        function,
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any other setting or sampling parameter, such as repetition_penalty=1.1; may be repeated.",
        ),
    )


def output_options(function: Decorated) -> Decorated:
    """What is told besides the answer."""
    return _apply(
        function,
        click.option("--stats", "--usage", "stats", is_flag=True, help="Show tokens, times and memory afterwards."),
        click.option("--progress/--no-progress", default=True, help="Show progress on a terminal."),
        click.option("-q", "--quiet", is_flag=True, help="Write nothing but answers and errors."),
        click.option("-v", "--verbose", is_flag=True, help="Tell what is loaded, and --stats."),
    )


def json_option(function: Decorated) -> Decorated:
    """For programs instead of people."""
    return _apply(function, click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output."))


def _apply(function: Decorated, *options: Callable[[Decorated], Decorated]) -> Decorated:
    for option in reversed(options):
        function = option(function)
    return function


def setting_flags(options: dict[str, Any], names: Sequence[str] = SETTING_OPTIONS) -> dict[str, object]:
    """The options that were given and are settings."""
    return {name: options[name] for name in names if options.get(name) is not None}
