"""The command group: commands are imported when they are used, and other distributions add theirs by entry point."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "pio.commands"

# Name and help of the commands of this distribution, so that --help imports none of them. The same names are entry
# points of the distribution, each at inference_pio.cli.<name>:command.
OWN_COMMANDS = {
    "run": "Answer a prompt.",
    "chat": "Talk with a model.",
    "show": "Describe a model: size, context, memory.",
    "pull": "Fetch a model from a hub.",
    "ls": "List the models on this machine.",
    "rm": "Delete a fetched model.",
    "cache": "List or delete packed copies of weights.",
    "config": "Show the settings that hold, and why.",
    "plugins": "List what is installed: model families and commands.",
    "env": "Describe this installation and machine.",
}

# Commands that other distributions of this project bring, for those who ask for one before they have it.
BROUGHT_BY = {"admin": "pio-serve", "bench": "pio-benchmarks", "serve": "pio-serve", "top": "pio-serve"}


class LazyGroup(click.Group):
    """Knows its commands by name and help text alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Own commands in their documented order, then those of other distributions by name."""
        return [*OWN_COMMANDS, *sorted(other_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        """Import the command ``cmd_name``.

        Raises:
            BrokenDependencyError: The distribution that brings it cannot be imported.
        """
        if cmd_name in OWN_COMMANDS:
            command = importlib.import_module(f"inference_pio.cli.{cmd_name}").command
            assert isinstance(command, click.Command)
            return command
        entry_point = other_commands().get(cmd_name)
        return None if entry_point is None else _load(entry_point)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, and with the nearest name if there is no such command.

        Raises:
            InvalidRequestError: There is none.
            MissingDependencyError: A distribution that is not installed brings it.
        """
        name = args[0]
        # Own names first: to know those of others, what is installed has to be looked through.
        if not name.startswith("-") and name not in OWN_COMMANDS and name not in (names := self.list_commands(ctx)):
            from inference_pio.interfaces import InvalidRequestError, MissingDependencyError

            if (distribution := BROUGHT_BY.get(name)) is not None:
                raise MissingDependencyError(
                    f"'pio {name}' comes with {distribution}, which is not installed",
                    hint=f"pip install {distribution}, or in a clone: uv run --group {distribution} pio {name}",
                )
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"commands are {', '.join(names)}"
            raise InvalidRequestError(f"no command {name!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """The list of commands in ``--help``, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(_described())

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands, without importing them, and options."""
        items = [CompletionItem(name, help=text) for name, text in _described() if name.startswith(incomplete)]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]


def other_commands() -> dict[str, EntryPoint]:
    """Entry points of other distributions, by command name; a name of this distribution cannot be taken."""
    from importlib.metadata import entry_points

    found = entry_points(group=ENTRY_POINT_GROUP)
    return {entry_point.name: entry_point for entry_point in found if entry_point.name not in OWN_COMMANDS}


def build_cli() -> LazyGroup:
    """The ``pio`` command group."""
    return LazyGroup(
        "pio",
        help="Run open-weight language models on the machine you have.",
        epilog='Try: pio run "Name the capital of France."',
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        params=[
            click.Option(
                ["-V", "--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_print_version,
                help="Show the version and exit.",
            )
        ],
    )


def _described() -> list[tuple[str, str]]:
    others = other_commands()
    return [*OWN_COMMANDS.items(), *((name, _summary(others[name])) for name in sorted(others))]


def _summary(entry_point: EntryPoint) -> str:
    distribution = entry_point.dist
    return f"From {distribution.name} {distribution.version}." if distribution is not None else entry_point.value


def _load(entry_point: EntryPoint) -> click.Command:
    from inference_pio.interfaces import BrokenDependencyError

    source = entry_point.dist.name if entry_point.dist is not None else entry_point.value
    try:
        command = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise BrokenDependencyError(
            f"command {entry_point.name!r} of {source} is installed, but importing {entry_point.value} failed: {error}",
            hint=f"reinstall or remove {source}",
        ) from error
    if not isinstance(command, click.Command):
        raise BrokenDependencyError(
            f"{entry_point.value} of {source} is not a click command but a {type(command).__name__}",
            hint=f"remove {source}, or report it to its authors",
        )
    return command


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"pio {version('inference-pio')}")
    ctx.exit()
