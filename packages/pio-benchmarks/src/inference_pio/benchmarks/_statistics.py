"""Medians, their spread, and how sure a ratio of two medians is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Summary:
    """Values of repeated measurements in five numbers.

    Attributes:
        median: The middle.
        minimum: The least.
        maximum: The greatest.
        lower_quartile: A quarter of the values are at most this (linear interpolation).
        upper_quartile: A quarter of the values are at least this.
        count: How many values there are.
    """

    median: float
    minimum: float
    maximum: float
    lower_quartile: float
    upper_quartile: float
    count: int

    @property
    def spread(self) -> float:
        """The interquartile range over the median, in magnitude; 0 where the median is 0."""
        return abs((self.upper_quartile - self.lower_quartile) / self.median) if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two medians.

    Attributes:
        value: Of the medians that were measured.
        low: Lower end of the bootstrap interval; None where a side has one value only, which says nothing of spread.
        high: Its upper end, likewise.
    """

    value: float
    low: float | None
    high: float | None


def summarize(values: Sequence[float]) -> Summary:
    """The five numbers of ``values``.

    Raises:
        ValueError: There are none, or one is not finite.
    """
    import numpy as np

    array = _array("values", values)
    minimum, lower, median, upper, maximum = np.quantile(array, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return Summary(median, minimum, maximum, lower, upper, len(array))


def median(values: Sequence[float]) -> float:
    """The middle of ``values``; of an even number, the mean of the middle two.

    Raises:
        ValueError: There are none, or one is not finite.
    """
    import numpy as np

    return float(np.median(_array("values", values)))


def ratio_of_medians(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    paired: bool = True,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ratio:
    """``median(numerators) / median(denominators)`` with a percentile bootstrap interval.

    Paired values were measured in the same round, side by side: rounds are drawn with replacement, so that what slowed
    both sides of a round cancels. Unpaired values are drawn on each side alone. (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 13.) The median of few rounds has few possible values: at 3 rounds the interval is
    that of the extremes and covers less than it says, from 5 on about what it says.

    Args:
        numerators: Positive values; with ``paired``, value i is of round i.
        denominators: Positive values, as many as ``numerators`` if paired.
        paired: Whether rounds are drawn together.
        confidence: Of the interval, between 0 and 1.
        resamples: How many times to draw.
        seed: Makes the interval repeatable.

    Raises:
        ValueError: A side is empty or not positive, pairs do not match, or ``confidence`` is no share.
    """
    import numpy as np

    top, bottom = _positive("numerators", numerators), _positive("denominators", denominators)
    if paired and len(top) != len(bottom):
        raise ValueError(f"paired rounds need as many values on both sides, not {len(top)} and {len(bottom)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    value = float(np.median(top) / np.median(bottom))
    if min(len(top), len(bottom)) < 2:
        return Ratio(value, None, None)
    generator = np.random.default_rng(seed)
    drawn_top = generator.integers(len(top), size=(resamples, len(top)))
    drawn_bottom = drawn_top if paired else generator.integers(len(bottom), size=(resamples, len(bottom)))
    ratios = np.median(top[drawn_top], axis=1) / np.median(bottom[drawn_bottom], axis=1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Ratio(value, low, high)


def _array(name: str, values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    import numpy as np

    if not values:
        raise ValueError(f"{name} is empty")
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{name} holds {value}, which is not finite")
    return np.array(values, dtype=np.float64)


def _positive(name: str, values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = _array(name, values)
    if array.min() <= 0:
        raise ValueError(f"{name} holds {array.min():g}, which is not positive")
    return array
