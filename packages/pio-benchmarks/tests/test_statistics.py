"""Medians, spread and the bootstrap, against known answers and known coverage."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from inference_pio.benchmarks import Ratio, Summary, median, ratio_of_medians, summarize


def test_five_numbers_of_known_values():
    """Quartiles interpolate linearly, as the standard library's inclusive method does."""
    assert summarize([4.0, 1.0, 3.0, 2.0, 5.0]) == Summary(3.0, 1.0, 5.0, 2.0, 4.0, 5)
    assert summarize([7.0]) == Summary(7.0, 7.0, 7.0, 7.0, 7.0, 1)
    assert summarize([0.0, 0.0]).spread == 0.0


@pytest.mark.parametrize("count", [2, 3, 4, 7, 20])
def test_five_numbers_agree_with_the_standard_library(count):
    """Over sizes even and odd, in any order."""
    values = np.random.default_rng(count).normal(10, 3, count).tolist()
    summary = summarize(values)
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    assert math.isclose(summary.lower_quartile, lower)
    assert math.isclose(summary.upper_quartile, upper)
    assert math.isclose(summary.median, middle)
    assert math.isclose(median(values), statistics.median(values))
    assert math.isclose(summary.spread, (upper - lower) / abs(middle))


def test_a_constant_ratio_has_a_point_for_an_interval():
    """Paired rounds that a slow machine scales alike have one ratio."""
    slowness = [1.0, 2.5, 0.7, 4.0, 1.1]
    ratio = ratio_of_medians([3.0 * s for s in slowness], slowness)
    assert ratio == Ratio(pytest.approx(3.0), pytest.approx(3.0), pytest.approx(3.0))
    apart = ratio_of_medians([3.0 * s for s in slowness], slowness, paired=False)
    assert apart.high - apart.low > 1


def test_the_interval_is_that_of_all_resamples():
    """Of three rounds there are 27 resamples, each as likely: their quantiles are known exactly."""
    top, bottom = np.array([2.0, 3.0, 7.0]), np.array([1.0, 1.2, 2.0])
    indices = np.stack(np.meshgrid(*[range(3)] * 3), axis=-1).reshape(-1, 3)
    exact = np.median(top[indices], axis=1) / np.median(bottom[indices], axis=1)
    ratio = ratio_of_medians(top.tolist(), bottom.tolist(), confidence=0.6)
    assert [ratio.low, ratio.high] == pytest.approx(np.quantile(exact, [0.2, 0.8], method="nearest"))
    assert ratio.value == pytest.approx(2.5)


def test_the_same_seed_gives_the_same_interval():
    """And another seed another one, where there are many rounds."""
    generator = np.random.default_rng(5)
    top, bottom = generator.lognormal(1, 0.2, 40).tolist(), generator.lognormal(0, 0.2, 40).tolist()
    first = ratio_of_medians(top, bottom, resamples=200)
    assert first == ratio_of_medians(top, bottom, resamples=200)
    assert first != ratio_of_medians(top, bottom, resamples=200, seed=1)


@pytest.mark.parametrize(("rounds", "least"), [(5, 0.88), (9, 0.90), (25, 0.91)])
@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_covers_the_truth_as_often_as_it_says(rounds, least, paired):
    """Log-normal times around a known ratio, with a slowness that the sides of a round share when paired.

    95 % intervals over 400 experiments; the bound leaves three standard errors of the count and the known shortfall of
    the percentile bootstrap in small samples. An interval of everything would fail the second assertion.
    """
    generator = np.random.default_rng(rounds)
    covered, widths = 0, []
    for _ in range(400):
        shared = generator.lognormal(0, 0.3, rounds) if paired else 1.0
        top = 1.7 * shared * generator.lognormal(0, 0.1, rounds)
        bottom = shared * generator.lognormal(0, 0.1, rounds)
        ratio = ratio_of_medians(top.tolist(), bottom.tolist(), paired=paired, resamples=500)
        covered += ratio.low <= 1.7 <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert covered / 400 >= least
    assert np.median(widths) < (1.5 if paired else 0.6)


def test_pairing_narrows_what_rounds_share():
    """What a busy hour does to both sides cancels only where rounds are kept together."""
    generator = np.random.default_rng(3)
    shared = generator.lognormal(0, 0.5, 15)
    top = (2 * shared * generator.lognormal(0, 0.01, 15)).tolist()
    together, apart = (ratio_of_medians(top, shared.tolist(), paired=paired) for paired in (True, False))
    assert together.high - together.low < 0.2 * (apart.high - apart.low)


def test_one_round_has_no_interval():
    """Nothing is known of its spread."""
    assert ratio_of_medians([6.0], [2.0]) == Ratio(3.0, None, None)
    assert ratio_of_medians([6.0, 6.0], [2.0], paired=False) == Ratio(3.0, None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize([]), "values is empty"),
        (lambda: median([1.0, math.nan]), "values holds nan, which is not finite"),
        (lambda: ratio_of_medians([], [1.0]), "numerators is empty"),
        (lambda: ratio_of_medians([1.0], [math.inf]), "denominators holds inf"),
        (lambda: ratio_of_medians([1.0], [0.0]), "denominators holds 0, which is not positive"),
        (lambda: ratio_of_medians([1.0, 2.0], [1.0]), "as many values on both sides, not 2 and 1"),
        (lambda: ratio_of_medians([1.0], [1.0], confidence=1.0), "confidence must be between 0 and 1, not 1"),
    ],
)
def test_callers_mistakes_are_value_errors(call, message):
    """With the value in the message."""
    with pytest.raises(ValueError, match=message):
        call()
