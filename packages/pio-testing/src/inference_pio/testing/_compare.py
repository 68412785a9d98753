"""Comparing two computations of the same rows, with a report of where they part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class ParityError(AssertionError):
    """What must agree does not."""


def compare(what: str, actual: Tensor, expected: Tensor, *, tolerance: float) -> float:
    """Hold ``actual`` (N, X) to ``expected`` (N, X).

    Args:
        what: Name of the comparison, for the report.
        actual: What was computed.
        expected: What must come out.
        tolerance: Largest absolute difference allowed.

    Returns:
        The largest absolute difference.

    Raises:
        ParityError: Shapes differ, a value is not finite, or the difference is above ``tolerance``.
    """
    if actual.shape != expected.shape:
        raise ParityError(f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if actual.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).abs()
    worst = difference.max().item()
    # A NaN compares as false, so the test is for agreement.
    if worst <= tolerance:
        return worst
    row = first_different_row(actual, expected, tolerance=tolerance)
    raise ParityError(
        f"{what}: off by up to {worst:.3g}, and {tolerance:g} is allowed; the first row that differs is {row} of "
        f"{actual.shape[0]} (by {difference[row].max().item():.3g}; largest entry at {int(actual[row].argmax())}, "
        f"expected at {int(expected[row].argmax())})"
    )


def first_different_row(actual: Tensor, expected: Tensor, *, tolerance: float) -> int | None:
    """The first row whose largest absolute difference is above ``tolerance`` or not a number, or None."""
    agrees = ((actual.double() - expected.double()).abs() <= tolerance).all(dim=-1)
    different = torch.nonzero(~agrees)
    return int(different[0, 0]) if different.numel() else None
