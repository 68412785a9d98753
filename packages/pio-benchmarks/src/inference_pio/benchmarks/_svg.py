"""Line charts as SVG inside HTML: axes, lines, error bars, a legend. Colours and fonts are the page's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from inference_pio.benchmarks._text import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COLOURS = 8
"""Classes ``c0`` to ``c7`` that the page's style sheet gives a colour; further series begin anew, dashed."""

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 20, 14, 48


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a chart.

    Attributes:
        label: Quantity and unit.
        log: Logarithmic; all values must be positive.
        ticks: Where to put which label; None lets the chart choose round numbers.
        from_zero: Begin at zero; not for logarithmic axes.
    """

    label: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] | None = None
    from_zero: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a series.

    Attributes:
        x: Place on the horizontal axis.
        y: Place on the vertical axis.
        low: Lower end of its error bar, or None for no bar.
        high: Upper end, likewise.
        note: What a pointer resting on it shows.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind, joined by a line in the order of ``x`` unless ``joined`` is False; ``marked`` draws them."""

    label: str
    points: tuple[Point, ...]
    joined: bool = True
    marked: bool = True


def figure(
    identifier: str, title: str, description: str, x: Axis, y: Axis, series: Sequence[Series], *, left_out: int = 0
) -> str:
    """A ``<figure>`` with caption, chart and legend; everything in it is escaped.

    Args:
        identifier: Unique in the page, of letters, digits and hyphens.
        title: Heading of the figure.
        description: What it shows, for those who do not see it; a table beside it should hold the figures.
        x: Horizontal axis.
        y: Vertical axis.
        series: At least one, each with at least one point.
        left_out: How many more there would be; the legend says so.

    Raises:
        ValueError: There are no points.
    """
    points = [point for each in series for point in each.points]
    if not points:
        raise ValueError(f"chart {title!r} has no points")
    across = _Scale(x, [point.x for point in points], _LEFT, _WIDTH - _RIGHT)
    heights = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    up = _Scale(y, heights, _HEIGHT - _BOTTOM, _TOP)
    body = [*_grid(across, up), *(part for i, each in enumerate(series) for part in _draw(each, i, across, up))]
    return "\n".join(
        [
            f'<figure><figcaption id="{identifier}-title">{escape(title)}</figcaption>',
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{identifier}-title {identifier}-desc">',
            f'<desc id="{identifier}-desc">{escape(description)}</desc>',
            *body,
            "</svg>",
            '<ul class="legend">',
            *(f"<li>{_key(index)}{escape(each.label)}</li>" for index, each in enumerate(series)),
            f"<li>{left_out} more are in the tables below</li></ul></figure>" if left_out else "</ul></figure>",
        ]
    )


class _Scale:
    """Maps values of an axis to places between ``begin`` and ``end``."""

    def __init__(self, axis: Axis, values: Sequence[float], begin: float, end: float) -> None:
        self.axis = axis
        low, high = min(values), max(values)
        if axis.from_zero and not axis.log:
            low = min(0.0, low)
        if axis.log:
            low, high = math.log10(low), math.log10(high)
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        self._low = low if axis.from_zero and low == 0 else low - room
        self._high = high + room
        self._begin, self._end = begin, end

    def place(self, value: float) -> float:
        share = ((math.log10(value) if self.axis.log else value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[tuple[float, str]]:
        if self.axis.ticks is not None:
            return list(self.axis.ticks)
        values = _log_ticks(self._low, self._high) if self.axis.log else _linear_ticks(self._low, self._high)
        return [(value, _label(value)) for value in values]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about six of them."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and where those are few, 2 and 5 times them."""
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [factor * 10.0**power for power in powers for factor in factors if low <= math.log10(factor) + power <= high]


def _label(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{value:,.6g}"


def _grid(across: _Scale, up: _Scale) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    yield '<g class="grid" aria-hidden="true">'
    for value, label in up.ticks():
        y = up.place(value)
        yield f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    for value, label in across.ticks():
        x = across.place(value)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{escape(label)}</text>'
    middle = (_TOP + bottom) / 2
    yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(across.axis.label)}</text>'
    yield (
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(up.axis.label)}</text></g>"
    )


def _draw(series: Series, index: int, across: _Scale, up: _Scale) -> Iterator[str]:
    points = sorted(series.points, key=lambda point: point.x)
    yield f'<g class="{_classes(index)}">'
    if series.joined and len(points) > 1:
        path = " ".join(f"{across.place(point.x):.1f},{up.place(point.y):.1f}" for point in points)
        yield f'<polyline points="{path}"/>'
    for point in points if series.marked else ():
        x, y = across.place(point.x), up.place(point.y)
        if point.low is not None and point.high is not None:
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.place(point.low):.1f}" y2="{up.place(point.high):.1f}"/>'
        yield _marker(index, x, y, point.note or f"{series.label}: {number(point.y)}")
    yield "</g>"


def _marker(index: int, x: float, y: float, note: str) -> str:
    """Shapes differ as colours do, for those who see few colours."""
    title = f"<title>{escape(note)}</title>" if note else ""
    match index % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>'
        case 1:
            return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">{title}</rect>'
        case 2:
            return f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z">{title}</path>'
    return f'<path d="M{x:.1f} {y - 5.5:.1f}l5 9h-10z">{title}</path>'


def _key(index: int) -> str:
    return (
        f'<svg class="key" viewBox="0 0 28 12" aria-hidden="true"><g class="{_classes(index)}">'
        f'<line x1="0" x2="28" y1="6" y2="6"/>{_marker(index, 14, 6, "")}</g></svg>'
    )


def _classes(index: int) -> str:
    return f"c{index % COLOURS}" + (" dashed" if index // COLOURS % 2 else "")
