"""From options to targets: a server that is there, the engine in this process, or both."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.benchmarks._gen_report import default_model
from inference_pio.benchmarks._serve_client import Asking, OpenAIClient, list_models
from inference_pio.benchmarks._serve_http import HttpClient, parse_base_url
from inference_pio.benchmarks._serve_options import check_secret_url, parse_extra_body, read_key
from inference_pio.benchmarks._serve_prompts import LengthRange, PromptMaker
from inference_pio.benchmarks._serve_session import learn_word_rate, make_prompts, measure, warm_up
from inference_pio.benchmarks._text import note, transient
from inference_pio.interfaces import ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy as np

    from inference_pio.benchmarks._serve_engine import EngineTarget
    from inference_pio.benchmarks._serve_http import BaseUrl
    from inference_pio.benchmarks._serve_load import LoadRun
    from inference_pio.benchmarks._serve_options import ServeOptions
    from inference_pio.benchmarks._serve_overhead import Overhead
    from inference_pio.benchmarks._serve_prompts import Prompt
    from inference_pio.benchmarks._serve_session import Plan

_DEFAULT_URL = "http://127.0.0.1:8000"
_OVERHEAD_CONCURRENCY = 8


async def press(options: ServeOptions, plan: Plan, generator: np.random.Generator) -> tuple[str, LoadRun]:
    """Run a plan against the target that the options name; the model's name, and what came of it.

    Raises:
        PioError: The target cannot be used.
    """
    if options.in_process is not None:
        async with open_engine(options, options.in_process) as engine:
            return engine.model, await measure(engine, plan, generator, say=transient)
    url = parse_base_url(options.base_url or _DEFAULT_URL)
    key = read_key(None if options.api_key_file is None else Path(options.api_key_file))
    warning = check_secret_url(url.scheme, url.host, key)
    if warning is not None:
        note(f"warning: {warning}")
    async with open_client(options, url, key, options.model) as client:
        return client.model, await measure(client, plan, generator, say=transient)


async def press_both(options: ServeOptions, plan: Plan, generator: np.random.Generator) -> tuple[str, Overhead]:
    """Start ``pio serve``, load the same model here, and hold the one against the other.

    Raises:
        PioError: One of them does not start, or a request fails.
    """
    from inference_pio.benchmarks._serve_overhead import measure_overhead
    from inference_pio.benchmarks._serve_server import free_port, running_server, serve_command

    name = options.model or default_model()
    port, key = free_port(), read_key(None)
    transient(f"starting pio serve {name}")
    async with (
        running_server(serve_command(name, port), port, headers=request_headers(key)) as (url, pid),
        open_client(options, url, key, None) as served,
        open_engine(options, name) as direct,
    ):
        maker = PromptMaker(generator, await learn_word_rate(served, generator))

        def make(length: int | None) -> list[Prompt]:
            lengths = plan if length is None else replace(plan, output_len=LengthRange(length, length))
            return make_prompts(maker, lengths, generator, plan.num_prompts)

        for target in (served, direct):
            await warm_up(target, make_prompts(maker, plan, generator, max(plan.warmups, 1)), 1, say=transient)
        overhead = await measure_overhead(
            served,
            direct,
            pid,
            make,
            concurrency=plan.load.max_concurrency or _OVERHEAD_CONCURRENCY,
            say=transient,
        )
    return direct.model, overhead


@contextlib.asynccontextmanager
async def open_client(
    options: ServeOptions, url: BaseUrl, key: str | None, model: str | None
) -> AsyncIterator[OpenAIClient]:
    """A client of the server at ``url``.

    Args:
        options: How answers are asked for.
        url: The server.
        key: Sent with every request; None sends none.
        model: By its name there; None for the first that the server names.

    Raises:
        PioError: The server cannot be reached, refuses, or serves nothing.
    """
    http = HttpClient(url, request_headers(key), timeout_s=options.timeout)
    try:
        asking = Asking(
            options.endpoint,
            model or await _first_model(http),
            options.goes_to_eos,
            options.temperature,
            parse_extra_body(options.extra_body),
        )
        yield OpenAIClient(http, asking)
    finally:
        await http.close()


def request_headers(key: str | None) -> dict[str, str]:
    """What is sent with every request."""
    headers = {"accept": "text/event-stream, application/json", "user-agent": "pio-bench"}
    return headers if key is None else headers | {"authorization": f"Bearer {key}"}


@contextlib.asynccontextmanager
async def open_engine(options: ServeOptions, model: str) -> AsyncIterator[EngineTarget]:
    """The engine of ``model`` in this process.

    Raises:
        PioError: The model cannot be found, read or held.
    """
    from inference_pio.benchmarks._serve_engine import EngineTarget, load_model

    transient(f"loading {model}")
    llm = load_model(model)
    target = EngineTarget(
        llm, endpoint=options.endpoint, ignore_eos=options.goes_to_eos, temperature=options.temperature
    )
    async with target:
        yield target


async def _first_model(http: HttpClient) -> str:
    models = await list_models(http)
    if not models:
        raise ModelNotFoundError(f"{http.url} serves no model", hint="name one by --model")
    return models[0]
