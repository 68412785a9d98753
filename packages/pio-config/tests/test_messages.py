"""Values and keys in messages: short and on one line, whatever they are."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_pio.config._text import nearest, shown, shown_key

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(value=anything)
def test_any_value_is_short_and_on_one_line(value):
    """No value breaks the line or floods it; what is printed is printable."""
    for text in (shown(value), shown_key(value)):
        assert len(text) < 300
        assert text.isprintable()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("x" * 61, f"'{'x' * 60}'..."),
        ("\ud800\n", r"'\ud800\n'"),
        (2**200, "an integer of 201 bits"),
        (-5, "-5"),
        (True, "True"),
        (1e-5, "1e-05"),
        ([1, "a"], "[1, 'a']"),
        ([1, 2, 3, 4, 5], "a list of 5"),
        ([[1]], "a list of 1"),
        ({"a": 1}, "a table of 1"),
        (dt.date(2026, 1, 1), "a date"),
    ],
)
def test_shown(value, text):
    """Small values as they are, large ones as what they are."""
    assert shown(value) == text


def test_shown_never_expands_a_deep_value():
    """A value that would print as gigabytes costs nothing to show."""
    value: object = "x"
    for _ in range(100):
        value = [value] * 4
    assert shown(value) == "a list of 4"


@pytest.mark.parametrize(
    ("name", "match"),
    [("dtyp", "dtype"), ("hiden_size", "hidden_size"), ("zzz", None), ("", None), ("x" * 10**6, None)],
)
def test_nearest(name, match):
    """The most similar known name, if any is similar; a huge name costs no more than a short one."""
    assert nearest(name, ["dtype", "hidden_size", "threads"]) == match
