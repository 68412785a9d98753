"""One HTML page about records: no script, no network, readable in light and dark."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from inference_pio.benchmarks._compare import newest
from inference_pio.benchmarks._machine import machine_to_json
from inference_pio.benchmarks._plots import decode_by, history, roofline
from inference_pio.benchmarks._roofline import attained
from inference_pio.benchmarks._statistics import summarize
from inference_pio.benchmarks._text import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inference_pio.benchmarks._limits import Limits
    from inference_pio.benchmarks._machine import Machine
    from inference_pio.benchmarks._record import Record

# The policy makes sure that nothing in a record can load or run anything, even if an escape were missing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6670; --line: #d9dee3; --page: #ffffff; --band: #f5f7f9;
  --c0: #0067a5; --c1: #c25200; --c2: #00795a; --c3: #a8407c; --c4: #8a6d00;
  --c5: #3578b5; --c6: #6a51a3; --c7: #5f5f5f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa6b1; --line: #343c44; --page: #14181c; --band: #1c2228;
    --c0: #5db4ee; --c1: #ff9d52; --c2: #3ccfa0; --c3: #f08cc4; --c4: #e3c04a;
    --c5: #9cc8f0; --c6: #b8a2ee; --c7: #b5b5b5; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; margin-bottom: .3rem; }
p, .meta { color: var(--soft); } .warning { color: var(--c1); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
thead th { background: var(--band); } .n { text-align: right; }
figure { margin: 1rem 0 2rem; } figcaption { font-weight: 600; }
figure > svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid line { stroke: var(--line); } .grid .axis { stroke: var(--soft); }
polyline { fill: none; stroke-width: 2; } .dashed polyline { stroke-dasharray: 6 4; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0; padding: 0; list-style: none;
  font-size: .85rem; }
.key { width: 28px; height: 12px; margin-right: .4rem; }
"""


def render_report(records: Sequence[Record]) -> str:
    """The page, as one HTML document: charts with the newest figures, history, and a table of each record.

    Args:
        records: At least one, in any order.

    Raises:
        ValueError: There are none.
    """
    if not records:
        raise ValueError("a report needs at least one record")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Benchmarks of Inference-PIO</title><style>{_style()}</style></head><body><main>",
        "<h1>Benchmarks of Inference-PIO</h1>",
        f"<p>{_summary(records)}</p>",
        *_charts(records),
        "<h2>Records</h2>",
        *(part for record in _in_order(records) for part in _record(record)),
        *_machines(records),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _style() -> str:
    colours = "\n".join(f".c{index} {{ stroke: var(--c{index}); fill: var(--c{index}); }}" for index in range(8))
    return f"{_STYLE}{colours}\n"


def _summary(records: Sequence[Record]) -> str:
    dates = sorted(record.date for record in records if record.date is not None)
    when = "" if not dates else f", {dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}"
    packages = ", ".join(sorted({record.package for record in records}))
    return escape(f"{len(records)} records of {packages}{when}.")


def _charts(records: Sequence[Record]) -> Iterator[str]:
    latest = newest(records)
    figures: list[str | None] = []
    for index, record in enumerate(latest.values()):
        figures.append(roofline(f"roofline-{index}", record))
        figures += [decode_by(f"{key}-{index}", record, key) for key in ("batch", "context")]
    for index, key in enumerate(latest):
        figures.append(history(f"history-{index}", [record for record in records if record.key == key]))
    drawn = [each for each in figures if each is not None]
    if drawn:
        yield "<h2>Charts</h2>"
        yield from drawn


def _in_order(records: Sequence[Record]) -> list[Record]:
    """By what they are of; the newest first."""
    return sorted(records, key=lambda each: (each.key, -each.date.timestamp() if each.date is not None else 0.0))


def _record(record: Record) -> Iterator[str]:
    package, benchmark, model = record.key
    date = "undated" if record.date is None else f"{record.date:%Y-%m-%d %H:%M %Z}"
    yield f"<h3>{escape(f'{package}/{benchmark}')}{escape(f', {model}' if model else '')}</h3>"
    settings = "; ".join(f"{name}: {value}" for name, value in record.settings.items() if name != "model")
    told = [date, f"version {record.version}" if record.version else "version unknown", settings or "no settings"]
    yield f'<p class="meta">{escape(" · ".join(told))}</p>'
    for warning in record.warnings:
        yield f'<p class="warning">{escape(warning)}</p>'
    rows: list[tuple[str, ...]] = []
    for each in record.measurements:
        summary = summarize(each.values)
        reached = attained(each, record.limits)
        rows.append(
            (
                each.name,
                number(summary.median),
                each.unit,
                f"{number(summary.minimum)} to {number(summary.maximum)}" if summary.count > 1 else "-",
                str(summary.count),
                "-" if reached is None else f"{reached.percent:.0f} % ({reached.bound})",
            )
        )
    heads = ("Measurement", "Median", "Unit", "Range", "Rounds", "Of the limit")
    yield _table(f"Measurements of {package}/{benchmark}, {date}", heads, rows, numeric={1, 3, 4, 5})


def _machines(records: Sequence[Record]) -> Iterator[str]:
    seen: list[tuple[Machine, tuple[Limits, ...]]] = []
    for record in _in_order(records):
        if record.machine is not None and all(record.machine != machine for machine, _ in seen):
            seen.append((record.machine, record.limits))
    for index, (machine, limits) in enumerate(seen):
        title = "Machine" if len(seen) == 1 else f"Machine {index + 1}"
        yield f"<h2>{title}</h2>"
        rows = [(name.replace("_", " "), _shown(value)) for name, value in machine_to_json(machine).items()]
        yield _table(title, ("Property", "Value"), rows, numeric=set())
        if limits:
            values = [(each.threads, each.read_gb_s, each.fp32_gflop_s, each.int8_gop_s) for each in limits]
            cells = [tuple("-" if value is None else number(value) for value in row) for row in values]
            heads = ("Threads", "Read, GB/s", "float32, GFLOP/s", "int8, GOP/s")
            yield _table(f"Limits of {title.lower()}", heads, cells, numeric={0, 1, 2, 3})


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none or unknown" if value is None else str(value)


def _table(label: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: set[int]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [' class="n"' if index in numeric else "" for index in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return f'<div class="scroll"><table aria-label="{escape(label)}">{head}<tbody>\n{body}\n</tbody></table></div>'
