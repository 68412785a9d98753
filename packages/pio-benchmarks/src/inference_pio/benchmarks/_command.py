"""``pio bench``: a group that knows its commands by name and imports one when it is used."""

from __future__ import annotations

import importlib

import click

# Help and place of each command, so that --help imports none of them.
COMMANDS = {
    "gen": ("Measure prefill and decode speed of a model.", "inference_pio.benchmarks._gen_command:gen"),
    "peers": (
        "Measure a model here and in other engines, side by side.",
        "inference_pio.benchmarks._peers_command:peers",
    ),
    "serve": (
        "Press a server, and report throughput and latencies.",
        "inference_pio.benchmarks._serve_command:serve",
    ),
    "quality": (
        "Measure what a model's arithmetic costs its answers.",
        "inference_pio.benchmarks._quality_command:quality",
    ),
    "run": ("Run the benchmarks of distributions in a checkout.", "inference_pio.benchmarks._run_command:run"),
    "compare": ("Find what became slower between two records.", "inference_pio.benchmarks._compare_command:compare"),
    "report": ("Draw records as one HTML page.", "inference_pio.benchmarks._report_command:report"),
    "limits": ("Measure what this machine allows at best.", "inference_pio.benchmarks._limits_command:limits"),
}


class LazyGroup(click.Group):
    """Knows its commands by name and help text alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In their documented order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        """Import the command ``cmd_name``; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][1].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """The list of commands in ``--help``, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (text, _) in COMMANDS.items()])


@click.group("bench", cls=LazyGroup)
def bench() -> None:
    """Measure models and packages, compare what was measured, and draw it."""
