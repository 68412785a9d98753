"""``pio bench report``: records as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORDS...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, metavar="FILE"
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
def report(records: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Draw records, or folders of them, as one HTML page that needs nothing else."""
    from inference_pio.benchmarks._record import read_records
    from inference_pio.benchmarks._report import render_report
    from inference_pio.benchmarks._text import note, write_json

    found = read_records(records)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_report(found), encoding="utf-8")
    if as_json:
        write_json({"report": str(output), "records": len(found)})
    else:
        note(f"{len(found)} records drawn in {output}")
