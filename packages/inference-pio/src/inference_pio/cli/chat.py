"""``pio chat``: talk with a model."""

from __future__ import annotations

import sys
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


@click.command("chat")
@model_options
@sampling_options
@setting_option
@json_option
@output_options
def command(as_json: bool, **options: Any) -> None:  # noqa: ANN401 - click passes options of all types
    """Talk with a model; /help lists what can be said to the program itself.

    Lines that are piped in are answered one by one.
    """
    from inference_pio.cli._chat import Conversation
    from inference_pio.cli._keyboard import history_file, is_interactive, line_history, plain_interrupts
    from inference_pio.cli._loading import load
    from inference_pio.cli._output import note
    from inference_pio.cli._settings import resolve

    quiet, verbose = options["quiet"], options["verbose"]
    run = resolve(setting_flags(options), options["assignments"], options["stop"])
    with load(run, progress=options["progress"] and not quiet, quiet=quiet, verbose=verbose) as llm:
        stats = (options["stats"] or verbose) and not quiet
        conversation = Conversation(llm, run, stats=stats, as_json=as_json)
        if is_interactive() and not quiet:
            note(f"{llm.name}; /help for help, Ctrl-D to leave")
        with line_history(history_file()), plain_interrupts():
            _talk(conversation, patient=is_interactive())


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

    with stop_key() as stop:
        interrupted = conversation.ask(message, stop).interrupted
    if stop.presses > 1:
        raise KeyboardInterrupt
    return interrupted
