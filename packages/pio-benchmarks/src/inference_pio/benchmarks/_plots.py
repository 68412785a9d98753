"""Which charts records call for: rooflines, decode speed by batch and by context, history."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from inference_pio.benchmarks._roofline import peak_ops, units_per_second
from inference_pio.benchmarks._statistics import median, summarize
from inference_pio.benchmarks._svg import Axis, Point, Series, figure
from inference_pio.benchmarks._text import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inference_pio.benchmarks._limits import Limits
    from inference_pio.benchmarks._record import Measurement, Record

_MOST_LINES = 8
"""More lines than this in one chart cannot be told apart."""


def roofline(identifier: str, record: Record) -> str | None:
    """Speed of arithmetic by operations per byte, under the roofs of the machine; None if nothing tells of both.

    (Williams et al., Roofline, CACM 52(4), 2009.)
    """
    series = [Series(each.name, (point,), joined=False) for each in record.measurements if (point := _intensity(each))]
    if not series or not record.limits:
        return None
    places = [each.points[0].x for each in series]
    limits = record.limits[-1]
    span = (min(places) / 4, max(max(places) * 4, _ridge(limits)))
    roofs = [
        Series(f"{limits.threads} threads: {number(limits.read_gb_s)} GB/s, then {name}", roof, marked=False)
        for name, roof in _roofs(limits, span)
    ]
    return figure(
        identifier,
        f"Roofline: {_title(record)}",
        "Operations per second of each measurement by its operations per byte read, below the limits of memory and "
        "arithmetic that were measured in the same run.",
        Axis("operations per byte", log=True),
        Axis("10^9 operations per second", log=True),
        [*roofs, *series[: 2 * _MOST_LINES]],
        left_out=len(series[2 * _MOST_LINES :]),
    )


def decode_by(identifier: str, record: Record, key: str) -> str | None:
    """Decode speed by ``"batch"`` or ``"context"``, one line per setting of everything else; None without a choice."""
    other = "context" if key == "batch" else "batch"
    lines: dict[str, list[Point]] = {}
    found = [each for each in record.measurements if _is_decode(each)]
    varying = _varying(found, {key, "tokens"})
    for measurement in found:
        details = measurement.details
        value = details[key]
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        words = [f"{name} {details.get(name)}" for name in varying] or [f"{other} {details.get(other)}"]
        summary = summarize(measurement.values)
        note = f"{measurement.name}: {number(summary.median)} {measurement.unit}"
        point = Point(float(value), summary.median, summary.lower_quartile, summary.upper_quartile, note)
        lines.setdefault(", ".join(words), []).append(point)
    places = sorted({point.x for points in lines.values() for point in points})
    if len(places) < 2:
        return None
    ticks = tuple((place, f"{place:,.0f}") for place in places) if len(places) <= 8 else None
    drawn = [Series(label, tuple(points)) for label, points in lines.items() if len(points) > 1]
    if not drawn:
        return None
    return figure(
        identifier,
        f"Decode speed by {key}: {_title(record)}",
        f"Median tokens per second of decoding by {key}; bars span the middle half of the rounds.",
        Axis("sequences in the batch" if key == "batch" else "tokens in context", log=places[0] > 0, ticks=ticks),
        Axis("tokens per second", from_zero=True),
        drawn[: 2 * _MOST_LINES],
        left_out=len(drawn[2 * _MOST_LINES :]),
    )


def history(identifier: str, records: Sequence[Record]) -> str | None:
    """How much better than in the first record each measurement was, by date; None of fewer than two dates.

    Of more measurements than can be told apart, those that changed most are drawn.

    Args:
        identifier: Of the figure.
        records: Of one package, benchmark and model.
    """
    dated = sorted(
        ((record.date, record) for record in records if record.date is not None), key=lambda pair: pair[0].timestamp()
    )
    moments = sorted({date.timestamp() for date, _ in dated})
    if len(moments) < 2:
        return None
    first = {each.name: each for each in dated[0][1].measurements}
    lines: dict[str, list[Point]] = {}
    for date, record in dated:
        for measurement in record.measurements:
            origin = first.get(measurement.name)
            if origin is None or origin.unit != measurement.unit or measurement.better == "neither":
                continue
            ratio = _times_as_good(origin, measurement)
            if ratio is not None:
                value = f"{number(median(measurement.values))} {measurement.unit}"
                note = f"{measurement.name}, {date:%Y-%m-%d}: {value}, {ratio:.2f}x"
                lines.setdefault(measurement.name, []).append(Point(date.timestamp(), ratio, note=note))
    chosen = sorted(lines, key=lambda name: -max(abs(math.log(point.y)) for point in lines[name]))[:_MOST_LINES]
    if not chosen:
        return None
    shown = moments if len(moments) <= 6 else [moments[index * (len(moments) - 1) // 5] for index in range(6)]
    dates = {date.timestamp(): f"{date:%Y-%m-%d}" for date, _ in dated}
    return figure(
        identifier,
        f"History: {_title(dated[0][1])}",
        "How much better than in the first record each measurement was, by date; above 1 is better.",
        Axis("date", ticks=tuple((moment, dates[moment]) for moment in shown)),
        Axis("times as good as at first", ticks=None),
        [Series(name, tuple(lines[name])) for name in chosen],
        left_out=len(lines) - len(chosen),
    )


def _times_as_good(first: Measurement, later: Measurement) -> float | None:
    """Ratio of the medians, above 1 being better; None where one is not positive."""
    one, other = median(first.values), median(later.values)
    if min(one, other) <= 0:
        return None
    return one / other if later.better == "lower" else other / one


def _intensity(measurement: Measurement) -> Point | None:
    rate = units_per_second(measurement)
    if rate is None or rate <= 0 or measurement.bytes_per_unit is None or measurement.ops_per_unit is None:
        return None
    speed = rate * measurement.ops_per_unit / 1e9
    note = f"{measurement.name}: {number(speed)} G operations per second"
    return Point(measurement.ops_per_unit / measurement.bytes_per_unit, speed, note=note)


def _ridge(limits: Limits) -> float:
    """Operations per byte at which the highest roof begins."""
    peak = peak_ops(limits, None)
    return 0.0 if peak is None else 2 * peak / (limits.read_gb_s * 1e9)


def _roofs(limits: Limits, span: tuple[float, float]) -> Iterable[tuple[str, tuple[Point, ...]]]:
    slope = limits.read_gb_s
    low, high = span
    for name, giga in (("float32", limits.fp32_gflop_s), ("8-bit integers", limits.int8_gop_s)):
        if giga is not None:
            ridge = min(max(giga / slope, low), high)
            corners = (low, ridge, high)
            yield name, tuple(Point(x, min(x * slope, giga)) for x in corners)
    if limits.fp32_gflop_s is None and limits.int8_gop_s is None:
        yield "unknown", (Point(low, low * slope), Point(high, high * slope))


def _is_decode(measurement: Measurement) -> bool:
    details = measurement.details
    known = details.get("phase") == "decode" and details.get("batch") is not None and details.get("context") is not None
    return known and measurement.unit == "tokens/s"


def _varying(measurements: Sequence[Measurement], left_out: set[str]) -> list[str]:
    """Details whose value is not the same in all measurements."""
    names = dict.fromkeys(name for each in measurements for name in each.details if name not in left_out)
    return [name for name in names if len({str(each.details.get(name)) for each in measurements}) > 1]


def _title(record: Record) -> str:
    package, benchmark, model = record.key
    return f"{package}/{benchmark}" + (f", {model}" if model else "")
