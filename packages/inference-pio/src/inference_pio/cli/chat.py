"""``pio chat``: talk with a model."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inference_pio.cli._options import (
    json_option,
    model_options,
    output_options,
    sampling_options,
    setting_flags,
    setting_option,
)

if TYPE_CHECKING:
    from inference_pio.cli._chat import Conversation
    from inference_pio.cli._chat_model import ChatModel
    from inference_pio.cli._settings import RunSettings

_FOR_SERVERS = frozenset({"model", "system", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed"})
"""Settings that mean something to a server, too."""


@click.command("chat", epilog="Example: pio chat --url http://127.0.0.1:8000 --stats")
@model_options
@click.option("--url", metavar="URL", help="Talk with a model of an OpenAI-compatible server.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The first key in it is sent to --url. [default: from PIO_SERVE_API_KEY]",
)
@click.option("--plain-key", is_flag=True, help="Send the key to another machine unencrypted.")
@sampling_options
@setting_option
@json_option
@output_options
def command(
    url: str | None,
    api_key_file: Path | None,
    plain_key: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - click passes options of all types
) -> None:
    """Talk with a model; /help lists what can be said to the program itself.

    Lines that are piped in are answered one by one.
    """
    from inference_pio.cli._chat import Conversation
    from inference_pio.cli._keyboard import history_file, is_interactive, line_history, plain_interrupts
    from inference_pio.cli._output import note
    from inference_pio.cli._settings import resolve

    quiet, verbose = options["quiet"], options["verbose"]
    run = resolve(setting_flags(options), options["assignments"], options["stop"])
    with ExitStack() as loaded:
        if url is None:
            _refuse_server_options(api_key_file, plain_key=plain_key)
            model = _local(run, loaded, progress=options["progress"] and not quiet, quiet=quiet, verbose=verbose)
        else:
            model = _remote(run, url, api_key_file, plain_key=plain_key, quiet=quiet)
        stats = (options["stats"] or verbose) and not quiet
        conversation = Conversation(model, run, stats=stats, as_json=as_json)
        if is_interactive() and not quiet:
            note(f"{model.described.name}; /help for help, Ctrl-D to leave")
        with line_history(history_file()), plain_interrupts():
            _talk(conversation, patient=is_interactive())


def _local(run: RunSettings, loaded: ExitStack, **told: bool) -> ChatModel:
    """The model that the settings name, in this process until ``loaded`` is closed."""
    from inference_pio.cli._chat_model import LocalModel
    from inference_pio.cli._loading import load

    return LocalModel(loaded.enter_context(load(run, **told)))


def _remote(run: RunSettings, url: str, api_key_file: Path | None, *, plain_key: bool, quiet: bool) -> ChatModel:
    """The model that ``--model`` names, on a server. What files and environment say is about this machine's models."""
    from inference_pio.cli._endpoint import endpoint_of, read_key
    from inference_pio.cli._output import note
    from inference_pio.cli._remote_model import remote_model
    from inference_pio.cli._settings import said_on_the_command_line
    from inference_pio.interfaces import InvalidRequestError

    said = said_on_the_command_line(run)
    for name in said:
        if name not in _FOR_SERVERS:
            raise InvalidRequestError(
                f"{name} is about a model in this process, and --url names a server", hint="leave one of them out"
            )
    endpoint = endpoint_of(url, read_key(api_key_file), plain_key=plain_key)
    say = (lambda _text: None) if quiet else note
    return remote_model(endpoint, run.settings.model if "model" in said else None, say)


def _refuse_server_options(api_key_file: Path | None, *, plain_key: bool) -> None:
    from inference_pio.interfaces import InvalidRequestError

    if api_key_file is not None or plain_key:
        name = "--plain-key" if plain_key else "--api-key-file"
        raise InvalidRequestError(f"{name} is about a server, and there is no --url", hint="give its --url")


def _talk(conversation: Conversation, *, patient: bool) -> None:
    """Read, answer, repeat. With ``patient``, errors are told and forgotten, and a first Ctrl-C is forgiven."""
    from inference_pio.cli._chat import is_command
    from inference_pio.cli._errors import report
    from inference_pio.cli._keyboard import read_message
    from inference_pio.cli._output import note
    from inference_pio.interfaces import PioError

    interrupted = False
    while True:
        try:
            message = read_message()
            interrupted = False
            if is_command(message):
                if conversation.command(message):
                    return
            elif message:
                interrupted = _answer(conversation, message)
        except EOFError:
            if patient:
                sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            if interrupted or not patient:
                raise
            interrupted = True
            note("\n(Ctrl-C again, Ctrl-D or /exit leaves)")
        except PioError as error:
            if not patient:
                raise
            report(error, as_json=False)


def _answer(conversation: Conversation, message: str) -> bool:
    """Answer ``message``; returns whether Ctrl-C stopped it."""
    from inference_pio.cli._keyboard import stop_key

    with stop_key(at_once=conversation.stops_at_once) as stop:
        interrupted = conversation.ask(message, stop).interrupted
    if stop.presses > 1:
        raise KeyboardInterrupt
    return interrupted
