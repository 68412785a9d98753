"""How values and keys appear in messages: short, on one line, whatever a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_TEXT = 60
_MAX_ITEMS = 4


def shown(value: object) -> str:
    """``value`` as one short printable line; never costs more than a few hundred characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]!r}..."
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple):
        if len(value) <= _MAX_ITEMS and not any(isinstance(item, list | tuple | Mapping) for item in value):
            return f"[{', '.join(shown(item) for item in value)}]"
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"a table of {len(value)}"
    return repr(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def shown_key(key: object) -> str:
    """``key`` bare where that is readable, quoted and shortened where it is not."""
    return key if isinstance(key, str) and len(key) <= _MAX_TEXT and key.isprintable() and key else shown(key)


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name most similar to ``name``, or None if none reaches ``cutoff`` (a ratio of matched characters)."""
    from difflib import get_close_matches

    matches = get_close_matches(name[:256], sorted(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known name, or None."""
    match = nearest(name, known)
    return None if match is None else f"did you mean {match!r}?"
