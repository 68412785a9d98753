"""``pio bench compare``: what became slower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from inference_pio.benchmarks._compare import Change, Comparison
    from inference_pio.benchmarks._statistics import Ratio


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path), metavar="A")
@click.argument("after", type=click.Path(path_type=Path), metavar="B")
@click.option("--threshold", default="5%", show_default=True, metavar="SHARE", help="Loss of speed that is too much.")
@click.option("--different-machines", is_flag=True, help="Compare records of different machines all the same.")
@click.option("--all", "everything", is_flag=True, help="Show what stayed the same as well.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
def compare(
    before: Path, after: Path, threshold: str, different_machines: bool, everything: bool, as_json: bool
) -> None:
    """Compare record B, or a folder of records, with the earlier A.

    A ratio above 1 is better, whatever the unit. Exit code 1 if something became worse than the threshold allows, and
    the 95 % interval of the ratio, where there are enough rounds for one, leaves no doubt.
    """
    from inference_pio.benchmarks._compare import compare as compare_records
    from inference_pio.benchmarks._options import parse_share
    from inference_pio.benchmarks._record import read_records
    from inference_pio.benchmarks._text import write_json

    share = parse_share("--threshold", threshold)
    comparison = compare_records(
        read_records([before]), read_records([after]), threshold=share, different_machines=different_machines
    )
    if as_json:
        changes = [_to_json(change) for change in comparison.changes]
        write_json({"threshold": share, "changes": changes, "notes": list(comparison.notes)})
    else:
        _print(comparison, everything=everything)
    if comparison.regressions:
        raise click.exceptions.Exit(1)


def _print(comparison: Comparison, *, everything: bool) -> None:
    from inference_pio.benchmarks._text import note, number, table, write

    shown = [change for change in comparison.changes if everything or change.verdict in {"better", "unsure", "worse"}]
    if shown:
        heads = ("BENCHMARK", "MEASUREMENT", "A", "B", "UNIT", "RATIO", "95 %", "")
        rows = [
            (
                f"{change.package}/{change.benchmark}" + (f" {change.model}" if change.model else ""),
                change.name,
                number(change.before),
                number(change.after),
                change.unit,
                "-" if change.ratio is None else f"{change.ratio.value:.2f}",
                _interval(change.ratio),
                change.verdict,
            )
            for change in shown
        ]
        write(table(rows, heads=heads, numeric=("A", "B", "RATIO")))
    counts = dict.fromkeys(("better", "same", "unsure", "worse", "not judged"), 0)
    for change in comparison.changes:
        counts[change.verdict] += 1
    write(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    for line in comparison.notes:
        note(f"note: {line}")


def _interval(ratio: Ratio | None) -> str:
    return "-" if ratio is None or ratio.low is None or ratio.high is None else f"{ratio.low:.2f}..{ratio.high:.2f}"


def _to_json(change: Change) -> dict[str, object]:
    ratio = change.ratio
    return {
        "package": change.package,
        "benchmark": change.benchmark,
        "model": change.model or None,
        "name": change.name,
        "unit": change.unit,
        "before": change.before,
        "after": change.after,
        "ratio": None if ratio is None else ratio.value,
        "low": None if ratio is None else ratio.low,
        "high": None if ratio is None else ratio.high,
        "verdict": change.verdict,
    }
