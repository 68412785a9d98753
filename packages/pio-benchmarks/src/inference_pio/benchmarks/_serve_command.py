"""``pio bench serve``: how a server holds up under load, as vLLM's benchmark of the same name."""

from __future__ import annotations

from typing import Any

import click


@click.command("serve")
@click.option("--base-url", metavar="URL", help="The server. [default: http://127.0.0.1:8000]")
@click.option("--in-process", metavar="MODEL", help="Load MODEL here and press its engine, without a server.")
@click.option("--overhead", is_flag=True, help="Start pio serve, and hold it against its engine.")
@click.option("--model", help="Name on the server. [default: the first that it names]")
@click.option(
    "--endpoint",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    show_default=True,
    help="Which API.",
)
@click.option("--api-key-file", metavar="FILE", help="Key. [default: from PIO_SERVE_API_KEY or OPENAI_API_KEY]")
@click.option("--num-prompts", type=click.IntRange(1), metavar="N", help="Requests. [default: 100, or the dataset]")
@click.option(
    "--request-rate", default="inf", show_default=True, metavar="R", help="Requests per second; inf: at once."
)
@click.option("--burstiness", default="1", show_default=True, metavar="B", help="1: Poisson; less: bursts; more: even.")
@click.option("--max-concurrency", type=click.IntRange(1), metavar="N", help="Requests that run at once at most.")
@click.option("--dataset", metavar="FILE", help="JSON lines, or ShareGPT's format, instead of made prompts.")
@click.option("--input-len", default="128", show_default=True, metavar="N|A-B", help="Tokens of made prompts.")
@click.option("--output-len", metavar="N|A-B", help="Tokens of answers. [default: 128, or the dataset's]")
@click.option(
    "--shared-prefix-len", default=0, type=click.IntRange(0), metavar="N", help="Tokens that made prompts share."
)
@click.option("--num-warmups", default=1, show_default=True, type=click.IntRange(0), metavar="N", help="Asked before.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of prompts and arrivals. [default: drawn]")
@click.option(
    "--ignore-eos/--no-ignore-eos", default=None, help="Go on to the full length. [default: for made prompts]"
)
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="Of the sampling.")
@click.option("--extra-body", metavar="JSON", help="Further fields of each request.")
@click.option("--timeout", default=3600.0, show_default=True, type=click.FloatRange(0, min_open=True), metavar="S")
@click.option("--goodput", multiple=True, metavar="NAME:MS,...", help="Objectives: ttft, tpot, e2el.")
@click.option("--percentile-metrics", default="ttft,tpot,itl", show_default=True, metavar="NAME,...")
@click.option("--metric-percentiles", default="99", show_default=True, metavar="P,...")
@click.option(
    "--ttft-until",
    type=click.Choice(["chunk", "text"]),
    default="chunk",
    show_default=True,
    help="What TTFT ends with: any chunk, as in vLLM, or the first with text.",
)
@click.option("--save-detailed", is_flag=True, help="Keep the times of each request in the record.")
@click.option("--strict", is_flag=True, help="Refuse if other programs are running.")
@click.option("-o", "--save-result", "output", metavar="FILE", help="Write the record there.")
@click.option("--json", "as_json", is_flag=True, help="Write the record to standard output as JSON.")
def serve(**values: Any) -> None:  # noqa: ANN401 - what click parsed; ServeOptions types it
    """Press an OpenAI-compatible server, and report throughput and latencies.

    Figures are defined as in vLLM's serving benchmark. Made prompts differ from their first words on, so that no cache
    of prefixes helps; with --shared-prefix-len it does.
    """
    from inference_pio.benchmarks._serve_options import ServeOptions
    from inference_pio.benchmarks._serve_run import run_serve

    run_serve(ServeOptions(**values))
