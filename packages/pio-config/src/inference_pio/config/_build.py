"""From a ``config.json``-shaped mapping to a family's frozen, typed config."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from inference_pio.config._known_keys import IRRELEVANT_KEYS, NEUTRAL_VALUES, ROPE_KEYS
from inference_pio.config._rope import parse_rope
from inference_pio.config._text import did_you_mean, shown, shown_key
from inference_pio.config._values import accepts_none, convert
from inference_pio.interfaces import ConfigError, RopeParameters

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from msgspec.structs import FieldInfo

T = TypeVar("T", bound=msgspec.Struct)

_WAY_OUT = "PIO_IGNORE_UNKNOWN_KEYS=1 or --set ignore_unknown_keys=true reads the model without it"
_MAX_TOKEN_ID = 2**31 - 1


def build_config(
    cls: type[T],
    raw: Mapping[str, object],
    *,
    aliases: Mapping[str, str] = MappingProxyType({}),
    ignored: Collection[str] = (),
    ignore_unknown: bool = False,
    origin: str = "model config",
) -> T:
    """A ``cls`` with the values of ``raw``.

    A field of type :class:`~inference_pio.interfaces.RopeParameters` is made by :func:`parse_rope` from the rotary keys
    of ``raw`` and the field ``max_position_embeddings``. A null stands for a value that was not given where the field's
    type has no None. Rules between fields belong into ``cls.__post_init__``, which raises ``ValueError``.

    Args:
        cls: A frozen, keyword-only struct; ``msgspec.Meta`` states the bounds.
        raw: From :func:`read_model_config` or :func:`gguf_to_hf`.
        aliases: Other spellings of keys, each with the field's name.
        ignored: Keys without influence on the computation, besides those that every family shares.
        ignore_unknown: Pass over unknown keys instead of refusing them.
        origin: What ``raw`` is, for messages.

    Raises:
        ConfigError: An unknown or missing key, or a value of the wrong type or out of bounds.
    """
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    rope_fields = [name for name, field in fields.items() if field.type is RopeParameters]
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for given, value in raw.items():
        key = aliases.get(given, given)
        if key in fields and key not in rope_fields:
            _take(values, fields[key], value, f"{origin}: {shown_key(given)}")
        elif not (rope_fields and key in ROPE_KEYS) and not _irrelevant(key, value, ignored):
            unknown.append(given)
    if unknown and not ignore_unknown:
        raise _unknown_keys(unknown, {*fields, *aliases} - set(rope_fields), origin)
    for name in rope_fields:
        values[name] = parse_rope(
            raw, max_position=_max_position(values, fields, origin), ignore_unknown=ignore_unknown, origin=origin
        )
    if missing := [name for name, field in fields.items() if field.required and name not in values]:
        raise ConfigError(f"{origin}: {', '.join(missing)} missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error


def token_ids(raw: Mapping[str, object], key: str) -> tuple[int, ...]:
    """The token ids under ``key``: one, a list of them, or none if it is null or absent.

    Raises:
        ConfigError: Not token ids, or not below ``raw["vocab_size"]`` where that is given.
    """
    value = raw.get(key)
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    size = raw.get("vocab_size")
    bound = size - 1 if isinstance(size, int) else _MAX_TOKEN_ID
    for item in ids:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= bound:
            raise ConfigError(f"{key} must be a token id from 0 to {bound} or a list of them, got {shown(item)}")
    return ids


def _take(values: dict[str, Any], field: FieldInfo, value: object, what: str) -> None:
    if value is None and not accepts_none(field.type):
        return
    converted = convert(value, field.type, what=what)
    if field.name in values and values[field.name] != converted:
        raise ConfigError(f"{what} = {shown(value)} contradicts another spelling of {field.name}")
    values[field.name] = converted


def _irrelevant(key: object, value: object, ignored: Collection[str]) -> bool:
    if key in ignored or key in IRRELEVANT_KEYS:
        return True
    return key in NEUTRAL_VALUES and value in NEUTRAL_VALUES[key]


def _unknown_keys(unknown: list[str], known: set[str], origin: str) -> ConfigError:
    first = unknown[0]
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    if first in NEUTRAL_VALUES:
        return ConfigError(f"{origin}: {first} is supported as {NEUTRAL_VALUES[first][0]!r} only{more}", hint=_WAY_OUT)
    guess = did_you_mean(first, known) if isinstance(first, str) else None
    hint = _WAY_OUT if guess is None else f"{guess} {_WAY_OUT}"
    return ConfigError(f"{origin}: unknown key {shown(first)}{more}", hint=hint)


def _max_position(values: Mapping[str, Any], fields: Mapping[str, FieldInfo], origin: str) -> int:
    field = fields.get("max_position_embeddings")
    if field is None:
        msg = "a config with rotary parameters needs a field max_position_embeddings"
        raise ValueError(msg)
    if field.name not in values and field.required:
        raise ConfigError(f"{origin}: max_position_embeddings missing")
    return int(values.get(field.name, field.default))
