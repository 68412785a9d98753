"""``pio bench limits``: what this machine allows at best."""

from __future__ import annotations

import click


@click.command("limits")
@click.option("--threads", metavar="N,...", help="Numbers of threads. [default: 1 and all cores]")
@click.option("--quick", is_flag=True, help="Rough figures in a fraction of a second.")
@click.option("--strict", is_flag=True, help="Refuse if other programs are running.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
def limits(threads: str | None, quick: bool, strict: bool, as_json: bool) -> None:
    """Measure how fast this machine reads memory and computes."""
    from inference_pio.benchmarks._limits import limits_to_json, measure_limits
    from inference_pio.benchmarks._machine import default_threads, describe_machine, machine_to_json
    from inference_pio.benchmarks._options import parse_counts
    from inference_pio.benchmarks._quiet import check_quiet
    from inference_pio.benchmarks._text import note, number, table, write, write_json

    activity = check_quiet(strict=strict)
    if not activity.quiet:
        note(f"warning: {activity.describe(names=True)}")
    machine = describe_machine()
    counts = parse_counts("--threads", threads) if threads is not None else [1, default_threads(machine)]
    measured = measure_limits(counts, quick=quick)
    if as_json:
        write_json({"machine": machine_to_json(machine), "limits": [limits_to_json(each) for each in measured]})
        return
    write(f"{machine.cpu}, {machine.physical_cores or machine.logical_cores} cores, measured by {measured[0].source}")
    rows = [
        (str(each.threads), *("-" if value is None else number(value) for value in (
            each.read_gb_s, each.fp32_gflop_s, each.int8_gop_s,
        )))
        for each in measured
    ]  # fmt: skip
    heads = ("THREADS", "READ GB/s", "FP32 GFLOP/s", "INT8 GOP/s")
    write(table(rows, heads=heads, numeric=heads))
