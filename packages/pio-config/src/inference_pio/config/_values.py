"""One value against one type: conversion by msgspec, messages in words that a user knows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from inference_pio.config._text import did_you_mean, shown
from inference_pio.interfaces import ConfigError

if TYPE_CHECKING:
    from msgspec import inspect

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_NONE = frozenset({"none", "null"})


def convert(value: object, wanted: object, *, what: str, from_text: bool = False) -> Any:  # noqa: ANN401 - a value of type `wanted`
    """``value`` as a ``wanted``, a type with ``msgspec.Meta`` bounds.

    Args:
        value: As it came from a file, an environment variable or a flag.
        wanted: The type.
        what: Where it came from and what it is, for the message.
        from_text: Whether a string may stand for a number, a truth value or none, as in the environment.

    Raises:
        ConfigError: The value is not of that type, out of its bounds, or not finite.
    """
    if from_text and isinstance(value, str):
        value = _read_text(value, wanted)
    try:
        converted = msgspec.convert(value, wanted, strict=not from_text)
    except msgspec.ValidationError:
        raise _refusal(value, wanted, what) from None
    if not _finite(converted):
        raise _refusal(value, wanted, what)
    return converted


def accepts_none(wanted: object) -> bool:
    """Whether None is a value of the type ``wanted``."""
    try:
        msgspec.convert(None, wanted)
    except msgspec.ValidationError:
        return False
    return True


def describe(wanted: object) -> str:
    """The type ``wanted`` and its bounds in words."""
    from msgspec import inspect

    return _words(inspect.type_info(wanted))


def _read_text(text: str, wanted: object) -> object:
    from msgspec import inspect

    parts = _parts(wanted)
    if any(isinstance(part, inspect.StrType | inspect.LiteralType) for part in parts):
        return text
    word = text.strip().lower()
    if word in _NONE and any(isinstance(part, inspect.NoneType) for part in parts):
        return None
    if any(isinstance(part, inspect.BoolType) for part in parts):
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
    return text.strip()


def _finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(_finite(item) for item in value)
    return True


def _refusal(value: object, wanted: object, what: str) -> ConfigError:
    choices = _choices(wanted)
    hint = did_you_mean(value, choices) if isinstance(value, str) and choices else None
    return ConfigError(f"{what} must be {describe(wanted)}, got {shown(value)}", hint=hint)


def _choices(wanted: object) -> list[str]:
    from msgspec import inspect

    return [str(value) for part in _parts(wanted) if isinstance(part, inspect.LiteralType) for value in part.values]


def _parts(wanted: object) -> list[inspect.Type]:
    """The alternatives of a union, or the one type, without annotations."""
    from msgspec import inspect

    info = inspect.type_info(wanted)
    parts = info.types if isinstance(info, inspect.UnionType) else (info,)
    return [part.type if isinstance(part, inspect.Metadata) else part for part in parts]


def _words(info: inspect.Type) -> str:  # noqa: PLR0911 - one per kind of type
    from msgspec import inspect

    match info:
        case inspect.UnionType(types=types):
            return " or ".join(_words(part) for part in types)
        case inspect.Metadata(extra_json_schema={"description": str(description)}):
            return description
        case inspect.IntType():
            return _bounded("an integer", info)
        case inspect.FloatType():
            return _bounded("a finite number", info)
        case inspect.StrType(pattern=str(pattern)):
            return f"a string that matches {pattern}"
        case inspect.StrType(min_length=int()):
            return "a non-empty string"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return f"a list (each item {_words(item)})"
        case inspect.StructType() | inspect.DictType() | inspect.DataclassType():
            return "a table"
        case inspect.StrType():
            return "a string"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "none"
    return f"a {type(info).__name__.removesuffix('Type').lower()}"


def _bounded(noun: str, info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f"{noun} from {_number(info.ge)} to {_number(info.le)}"
    limits = (("above", info.gt), ("at least", info.ge), ("below", info.lt), ("at most", info.le))
    words = [f"{phrase} {_number(bound)}" for phrase, bound in limits if bound is not None]
    return " ".join([noun, " and ".join(words)]) if words else noun


def _number(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
