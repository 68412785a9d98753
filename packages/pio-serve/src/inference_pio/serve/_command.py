"""``pio serve``: a server for OpenAI's clients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inference_pio.serve._settings import MEMORY_SHARE
from inference_pio.serve._size import SizeType

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.config import Settings
    from inference_pio.serve._lifecycle import PioServer
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._settings import ServeSettings

KEY_VARIABLE = "PIO_SERVE_API_KEY"
_ENGINE = ("executor", "device", "dtype", "threads", "max_model_len", "max_num_seqs", "speculative")


@click.command("serve", epilog="Example: pio serve smollm2-135m-instruct --port 8000")
@click.argument("models", nargs=-1, metavar="[[NAME=]MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; another than this one needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Serve https with this certificate (PEM, with its chain).",
)
@click.option(
    "--tls-key", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The certificate's key (PEM)."
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Keys that let clients in, one per line; {KEY_VARIABLE} holds one too.",
)
@click.option("--insecure-no-auth", is_flag=True, help="Let everyone in who reaches the address.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="A name of this server; repeat.")
@click.option("--served-model-name", metavar="NAME", help="What requests call the only model.")
@click.option(
    "--preload",
    type=click.Choice(["first", "all", "none"]),
    default="first",
    show_default=True,
    help="Models to load at the start; the others are when they are asked for.",
)
@click.option(
    "--memory-budget",
    type=SizeType(),
    help="Weights and caches of all models together, such as 8GiB.  "
    f"[default: {MEMORY_SHARE:.0%} of what is free; one model: no bound]",
)
@click.option("--kv-cache-bytes", type=SizeType(), help="Cache of each model, such as 1GiB.")
@click.option(
    "--unload-idle", type=click.FloatRange(min=0, min_open=True), metavar="S",
    help="Unload a model that nobody has asked for so many seconds.  [default: never]",
)  # fmt: skip
@click.option(
    "--admin-socket",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Unix socket for pio admin, which only the user who starts the server may open.",
)
@click.option(
    "--replicas", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N",
    help="Processes that answer, each with the models and its share of the cores.",
)  # fmt: skip
@click.option("--max-waiting", type=click.IntRange(min=1), default=256, show_default=True, help="Requests that wait.")
@click.option(
    "--max-concurrent-per-key",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Requests that one key may have open.",
)
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="Tokens that one key may use per minute.")
@click.option(
    "--request-timeout", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True, metavar="S",
    help="Seconds for one request.",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="S",
    help="Seconds for running requests to finish after SIGTERM.",
)  # fmt: skip
@click.option(
    "--otel-endpoint", metavar="URL",
    help="Send traces to this OpenTelemetry collector (OTLP/HTTP).  [default: from OTEL_EXPORTER_OTLP_ENDPOINT]",
)  # fmt: skip
@click.option("--access-log/--no-access-log", default=True, help="Write a line per request to standard error.")
@click.option("--executor", metavar="NAME", help="auto, native (fused CPU programs) or torch.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--dtype", metavar="DTYPE", help="auto, float32, bfloat16, float16 or int8.")
@click.option("--threads", metavar="N", help="CPU threads.")
@click.option("--max-model-len", metavar="N", help="Context length in tokens.")
@click.option("--max-num-seqs", metavar="N", help="Answers that are computed together at most.")
@click.option("--speculative", metavar="NAME", help="ngram, or a smaller model that drafts.")
def serve(models: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click passes options of all types
    """Answer OpenAI's clients with MODEL: a name, folder, GGUF file or hub id.

    Of several, each under a NAME of its own if given, one is loaded when it is first asked for, and unloaded again
    where another needs its memory. Every line about the server goes to standard error. SIGTERM lets running requests
    finish.
    """
    from inference_pio.serve._lifecycle import serve as run
    from inference_pio.serve._open_files import allow_open_files
    from inference_pio.serve._settings import Bounds

    set_up_log(access=options["access_log"])
    allow_open_files(Bounds().connections, files_each=1 if options["replicas"] == 1 else 2)
    if options["replicas"] > 1:
        from inference_pio.serve._router.command import make_router

        run(make_router(models, options))
    else:
        run(make_server(models, options))


def make_server(
    models: tuple[str, ...],
    options: dict[str, Any],
    *,
    on_listening: Callable[[str], None] | None = None,
    on_ready: Callable[[ServedModel, str], None] | None = None,
) -> PioServer:
    """The server that the command's arguments and options describe.

    Args:
        models: The arguments.
        options: The options, by the names of their parameters.
        on_listening: Called once connections are taken, with the address; None to say so.
        on_ready: Called with each model that is there, and the address; None to say so.

    Raises:
        PioError: A model or an option that is none.
    """
    from inference_pio.config import load_settings
    from inference_pio.serve._lifecycle import PioServer
    from inference_pio.serve._models.errors import gib
    from inference_pio.serve._models.files import memory_budget, model_spec, named_models

    settings = engine_settings(options)
    named = named_models(models or (settings.model,), options["served_model_name"])
    budget = memory_budget(options["memory_budget"], settings, len(named))
    told = serve_settings({**options, "memory_budget": budget}, os.environ.get(KEY_VARIABLE))
    specs = [
        model_spec(
            load_settings(flags={**_flags(options), "model": model}).settings,
            served_as=name,
            kv_cache_bytes=options["kv_cache_bytes"],
            by_name=options["preload"] == "none",
        )
        for name, model in named
    ]

    def say_listening(address: str) -> None:
        doing = f"loading {named[0][1]}" if len(named) == 1 else f"looking for {len(named)} models"
        say(f"listening at {address}, {doing}{'' if budget is None else f' within {gib(budget)} of memory'}")

    def say_ready(served: ServedModel, address: str) -> None:
        say(
            f"serving {served.name} at {address}/v1 ({served.llm.executor_summary}, context "
            f"{served.llm.max_model_len}, {keys_summary(told)}; ready after {served.llm.load_s:.1f} s)"
        )

    return PioServer(told, models=specs, on_listening=on_listening or say_listening, on_ready=on_ready or say_ready)


def engine_settings(options: dict[str, Any]) -> Settings:
    """The settings of models from the command's options and the layers below them.

    Raises:
        ConfigError: A setting that is none.
    """
    from inference_pio.config import load_settings

    return load_settings(flags=_flags(options)).settings


def _flags(options: dict[str, Any]) -> dict[str, str]:
    return {name: options[name] for name in _ENGINE if options[name] is not None}


def serve_settings(options: dict[str, Any], key: str | None) -> ServeSettings:
    """The server's settings from the command's options, and the key of the environment.

    Raises:
        ConfigError: A key that is none, or an open address without one.
    """
    from inference_pio.serve._keys import KeyRing, read_key_file
    from inference_pio.serve._settings import Bounds, ServeSettings
    from inference_pio.serve._trace_setup import endpoint_of

    def read_keys() -> KeyRing:
        keys = [] if options["api_key_file"] is None else read_key_file(options["api_key_file"])
        return KeyRing([*keys, key] if key else keys)

    return ServeSettings(
        host=options["host"],
        port=options["port"],
        tls_cert=options["tls_cert"],
        tls_key=options["tls_key"],
        keys=read_keys(),
        read_keys=None if options["api_key_file"] is None else read_keys,
        insecure_no_auth=options["insecure_no_auth"],
        allowed_hosts=options["allowed_hosts"],
        max_waiting=options["max_waiting"],
        max_concurrent_per_key=options["max_concurrent_per_key"],
        tokens_per_minute=options["tokens_per_minute"],
        drain_s=options["drain_timeout"],
        memory_budget=options["memory_budget"],
        unload_idle_s=options["unload_idle"],
        preload=options["preload"],
        admin_socket=options["admin_socket"],
        otel_endpoint=endpoint_of(options["otel_endpoint"]),
        bounds=Bounds(request_s=options["request_timeout"]),
    )


def keys_summary(settings: ServeSettings) -> str:
    """How many keys open the server."""
    count = len(settings.keys)
    return f"{count} API key{'s' if count != 1 else ''}" if count else "no API key"


def set_up_log(*, access: bool, name: str = "") -> None:
    """Write what happens to standard error.

    Args:
        access: Whether that is a line per request too.
        name: Begins each line.
    """
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name}%(message)s"))
    log = logging.getLogger("inference_pio")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.getLogger("inference_pio.serve.access").disabled = not access
    uvicorn_log = logging.getLogger("uvicorn")
    uvicorn_log.addHandler(handler)
    uvicorn_log.setLevel(logging.ERROR)  # what it says below that, we say, or clients could flood


def say(text: str) -> None:
    """A line about the server."""
    click.echo(f"pio: {text}", err=True)
