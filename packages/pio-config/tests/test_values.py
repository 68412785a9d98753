"""One value against one type: what a user is told about the type, and the values that bounds alone let through."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from inference_pio.config._values import convert, describe
from inference_pio.interfaces import ConfigError, LinearScaling


class Table(msgspec.Struct):
    """A nested struct."""


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (int, "an integer"),
        (Annotated[int, Meta(ge=1)], "an integer at least 1"),
        (Annotated[int, Meta(gt=0, lt=9)], "an integer above 0 and below 9"),
        (Annotated[float, Meta(ge=0.0, le=1e6)], "a finite number from 0 to 1e+06"),
        (Annotated[float, Meta(le=0.5)], "a finite number at most 0.5"),
        (bool | None, "true or false or none"),
        (str, "a string"),
        (Annotated[str, Meta(min_length=1)], "a non-empty string"),
        (Annotated[str, Meta(pattern="^a$")], "a string that matches ^a$"),
        (Annotated[str, Meta(pattern="^a$", description="an a")], "an a"),
        (Literal["a", "b"], "one of a, b"),
        (list[int], "a list (each item an integer)"),
        (tuple[float, ...] | None, "a list (each item a finite number) or none"),
        (dict[str, int], "a table"),
        (Table, "a table"),
        (LinearScaling, "a table"),
        (bytes, "a bytes"),
    ],
)
def test_types_in_words(wanted, words):
    """Every type that settings and configs use has words for it."""
    assert describe(wanted) == words


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (float("nan"), float),
        (float("inf"), float),
        (float("-inf"), float | None),
        ([1.0, float("nan")], list[float]),
        ((float("inf"),), tuple[float, ...]),
        ([[float("nan")]], list[list[float]]),
    ],
)
def test_numbers_without_bounds_are_finite_still(value, wanted):
    """A type without bounds lets no infinity through, nor what is no number, at any depth."""
    with pytest.raises(ConfigError, match=r"^x must be .*, got "):
        convert(value, wanted, what="x")
