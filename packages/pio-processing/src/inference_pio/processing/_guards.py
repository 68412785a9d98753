"""What templates may call, and how large the result can get: checked before the work is done.

Anything that is not listed here is refused. Entries are the functions that hold an operation to the limits, or None
where the result is no longer than what went in. (Case changes and escapes lengthen text by a small factor; their result
is checked afterwards.)
"""

from __future__ import annotations

import re
from string import Formatter
from typing import TYPE_CHECKING

from jinja2.exceptions import SecurityError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inference_pio.processing._meter import Meter

MAX_WIDTH = 1024
"""Widths, indents, precisions."""
MAX_ATTRIBUTE_CHARS = 256
MAX_INT_BITS = 4096

_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")


def refuse(what: str) -> SecurityError:
    """The error for an operation that templates may not use."""
    return SecurityError(f"templates may not use {what}")


def check_width(value: object, what: str) -> int:
    """A width given by the template, at most :data:`MAX_WIDTH`; text stands for its own length."""
    width = len(value) if isinstance(value, str) else value
    if not isinstance(width, int) or not -MAX_WIDTH <= width <= MAX_WIDTH:
        raise refuse(f"{what} {value!r:.40}; the limit is {MAX_WIDTH}")
    return width


def check_replace(meter: Meter, text: object, old: object, new: object, count: object = None) -> None:
    """``replace``: each occurrence of ``old`` grows to ``new``."""
    del count
    string, part = str(text), str(old)
    found = string.count(part) if part else len(string) + 1
    meter.create(len(string) + found * max(0, len(str(new)) - len(part)))


def check_padding(meter: Meter, text: object, width: object = 80, fill: object = " ") -> None:
    """``center``, ``ljust``, ``rjust``, ``zfill``."""
    del fill
    meter.create(len(str(text)) + check_width(width, "a field of width"))


def check_expandtabs(meter: Meter, text: str, tabsize: object = 8) -> None:
    """``expandtabs``: each tab grows to ``tabsize``."""
    meter.create(len(text) + text.count("\t") * abs(check_width(tabsize, "tabs of size")))


def check_indent(meter: Meter, text: object, width: object = 4, *_rest: object, **_named: object) -> None:
    """``indent``: each line grows by ``width``."""
    string = str(text)
    meter.create(len(string) + (len(string.splitlines()) + 1) * (1 + abs(check_width(width, "an indent of"))))


def check_batch(_meter: Meter, _value: object, linecount: object, fill_with: object = None) -> None:
    """``batch``: the last row is filled up."""
    del fill_with
    check_width(linecount, "rows of length")


def check_round(_meter: Meter, _value: object, precision: object = 0, _method: object = "common") -> None:
    """``round`` computes ten to the power of the precision."""
    check_width(precision, "a precision of")


def check_sum(_meter: Meter, _value: object, attribute: object = None, start: object = 0) -> None:
    """``sum`` of anything but numbers copies its result at every step."""
    check_attribute(_meter, None, attribute)
    if not isinstance(start, int | float):
        raise refuse("sum() of anything but numbers")


def check_attribute(_meter: Meter, _value: object, *args: object, **named: object) -> None:
    """Filters that take the path of an attribute walk it once per item."""
    for argument in (*args, *named.values()):
        if isinstance(argument, str) and len(argument) > MAX_ATTRIBUTE_CHARS:
            raise refuse(f"a filter argument of {len(argument)} characters; the limit is {MAX_ATTRIBUTE_CHARS}")


def check_percent(meter: Meter, text: str, argument: object) -> None:
    """``%`` formatting: every field may take the longest argument, and be padded."""
    fields = _PERCENT.findall(text)
    for width in (part for field in fields for part in field if part):
        check_width(None if width == "*" else int(width[:8]), "a field of width")
    if isinstance(argument, tuple):
        longest = max(map(meter.longest, argument), default=0)
    elif isinstance(argument, dict):
        longest = max(map(meter.longest, argument.values()), default=0)
    else:
        longest = meter.longest(argument)
    meter.create(len(text) + len(fields) * max(longest, MAX_WIDTH))


def check_format(meter: Meter, text: str, *args: object, **named: object) -> None:
    """``format``: every field may take the longest argument, and be padded."""
    fields = 0
    for _literal, name, spec, _conversion in Formatter().parse(text):
        fields += name is not None
        if spec and "{" in spec:
            raise refuse("nested fields in format()")
        for digits in re.findall(r"\d+", spec or ""):
            check_width(int(digits[:8]), "a field of width")
    longest = max((meter.longest(value) for value in (*args, *named.values())), default=0)
    meter.create(len(text) + fields * max(longest, MAX_WIDTH))


STR_METHODS: Mapping[str, Callable[..., None] | None] = {
    **dict.fromkeys(
        (
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii"),
            *("isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle"),
            *("isupper", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex"),
            *("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title"),
            *("upper",),
        )
    ),
    "center": check_padding,
    "expandtabs": check_expandtabs,
    "format": check_format,
    "ljust": check_padding,
    "replace": check_replace,
    "rjust": check_padding,
    "zfill": check_padding,
}
"""Methods of strings; ``join`` is done by the environment itself."""

METHODS: Mapping[type, Mapping[str, Callable[..., None] | None]] = {
    str: STR_METHODS,
    dict: dict.fromkeys(("copy", "get", "items", "keys", "values")),
    list: dict.fromkeys(("copy", "count", "index")),
    tuple: dict.fromkeys(("count", "index")),
    float: dict.fromkeys(("is_integer",)),
}
"""Methods by the type of the object they belong to."""

FILTERS: Mapping[str, Callable[..., None] | None] = {
    **dict.fromkeys(
        (
            *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
            *("forceescape", "int", "items", "last", "length", "list", "lower", "reverse", "safe", "string", "title"),
            *("trim", "truncate", "upper"),
        )
    ),
    **dict.fromkeys(
        ("groupby", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique"),
        check_attribute,
    ),
    "batch": check_batch,
    "center": check_padding,
    "indent": check_indent,
    "replace": check_replace,
    "round": check_round,
    "sum": check_sum,
}
"""Jinja's own filters; ``format``, ``join`` and ``tojson`` are done by the environment itself."""
