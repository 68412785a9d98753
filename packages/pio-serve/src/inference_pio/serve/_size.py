"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", re.IGNORECASE | re.ASCII)
_UNITS: Mapping[str, int] = MappingProxyType(
    {"": 1, "b": 1}
    | {f"{letter}{rest}": 2 ** (10 * power) for power, letter in enumerate("kmgt", 1) for rest in ("", "i", "ib")}
    | {f"{letter}b": 10 ** (3 * power) for power, letter in enumerate("kmgt", 1)}
)


class SizeType(click.ParamType[int]):
    """``8GiB``, ``8G`` and ``8192MiB`` are the same; ``8GB`` are powers of ten; a bare number is bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes.

        Raises:
            click.BadParameter: ``value`` is no size above 0.
        """
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        unit = None if match is None else _UNITS.get(match[2].lower())
        nbytes = 0 if match is None or unit is None else int(float(match[1]) * unit)
        if nbytes < 1:
            self.fail(f"{value!r} is no size: give bytes, or a number with KiB, MiB, GiB or TiB", param, ctx)
        return nbytes
