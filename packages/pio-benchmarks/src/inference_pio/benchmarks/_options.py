"""Values of options, held to their rules."""

from __future__ import annotations

import math

from inference_pio.interfaces import InvalidRequestError


def parse_counts(option: str, text: str) -> list[int]:
    """Positive integers between commas, in their order.

    Raises:
        InvalidRequestError: It is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 6 and int(part) > 0 for part in parts):
        raise InvalidRequestError(f"{option}: {text!r} is no list of positive integers", hint=f"as in {option} 1,2")
    return [int(part) for part in parts]


def parse_share(option: str, text: str) -> float:
    """A share of at least 0 and below 1: ``"5%"`` or ``"0.05"``.

    Raises:
        InvalidRequestError: It is something else.
    """
    digits = text.strip()
    scale = 100 if digits.endswith("%") else 1
    try:
        share = float(digits.removesuffix("%")) / scale
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise InvalidRequestError(f"{option}: {text!r} is no share between 0 and 100 %", hint=f"as in {option} 5%")
    return share
