"""``pio run``: answer one prompt."""

from __future__ import annotations

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
    from inference_pio.cli._answer import Stream
    from inference_pio.cli._settings import RunSettings
    from inference_pio.core import LLM


@click.command("run", epilog='Example: git diff | pio run "Write a commit message." --max-tokens 60')
@click.argument("prompt", required=False)
@model_options
@sampling_options
@click.option("--raw", "--no-chat-template", "raw", is_flag=True, help="Continue the prompt as it stands.")
@setting_option
@click.option("--stream/--no-stream", default=None, help="Write each token as it comes. [default: stream]")
@json_option
@output_options
def command(
    prompt: str | None,
    raw: bool,
    stream: bool | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - click passes options of all types
) -> None:
    """Answer PROMPT, or standard input if PROMPT is '-' or left out.

    Text that is piped in is added to PROMPT. The answer goes to standard output, everything else to standard error.
    """
    from inference_pio.cli import _answer
    from inference_pio.cli._loading import load
    from inference_pio.cli._output import write, write_json
    from inference_pio.cli._prompt import read_prompt
    from inference_pio.cli._settings import resolve

    quiet, verbose = options["quiet"], options["verbose"]
    run = resolve(setting_flags(options), options["assignments"], options["stop"])
    text = read_prompt(prompt, quiet=quiet)
    with load(run, progress=options["progress"] and not quiet, quiet=quiet, verbose=verbose) as llm:
        request = _start(llm, run, text, raw=raw)
        if as_json:
            answer = _answer.stream_json(request) if stream else _answer.collect(request)
            write_json(_answer.as_object(llm, answer))
        elif stream is False:
            answer = _answer.collect(request)
            write(answer.text if answer.text.endswith("\n") else answer.text + "\n")
        else:
            answer = _answer.stream_text(request)
        if (options["stats"] or verbose) and not quiet:
            _answer.tell_stats(llm, answer)
    if answer.interrupted:
        raise KeyboardInterrupt


def _start(llm: LLM, run: RunSettings, text: str, *, raw: bool) -> Stream:
    from inference_pio.cli._answer import EngineStream
    from inference_pio.cli._settings import sampling_params

    params = sampling_params(run.settings, run.sampling, llm.get_default_sampling_params())
    if raw:
        return EngineStream(llm.stream(text, params))
    system = run.settings.system
    messages = [{"role": "system", "content": system}] if system else []
    return EngineStream(llm.chat_stream([*messages, {"role": "user", "content": text}], params))
