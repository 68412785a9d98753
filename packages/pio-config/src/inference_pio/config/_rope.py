"""Rotary embedding parameters from a checkpoint's config, in the old and the new spelling.

Old: ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling: {type | rope_type, factor, ...}`` beside each other.
New: all of them in ``rope_parameters: {rope_type, rope_theta, partial_rotary_factor, factor, ...}``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from inference_pio.config._text import did_you_mean, shown
from inference_pio.config._values import convert
from inference_pio.interfaces import (
    ConfigError,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeParameters,
    RopeScaling,
    YarnScaling,
)

T = TypeVar("T", bound=msgspec.Struct)

_Factor = Annotated[float, Meta(ge=1.0, le=1e6)]
_Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
_Coefficient = Annotated[float, Meta(ge=0.0, le=1e6)]
_Length = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Divisors = Annotated[tuple[_Positive, ...], Meta(min_length=1, max_length=4096)]
_Theta = Annotated[float, Meta(gt=1.0, le=1e15)]
_Share = Annotated[float, Meta(gt=0.0, le=1.0)]


class _Default(msgspec.Struct, frozen=True, kw_only=True):
    pass


class _Linear(msgspec.Struct, frozen=True, kw_only=True):
    factor: _Factor


class _Dynamic(msgspec.Struct, frozen=True, kw_only=True):
    factor: _Factor
    # Written by some checkpoints, never read by the reference: this rule starts from max_position_embeddings.
    original_max_position_embeddings: _Length | None = None


class _Llama3(msgspec.Struct, frozen=True, kw_only=True):
    factor: _Factor
    low_freq_factor: _Positive
    high_freq_factor: _Positive
    original_max_position_embeddings: _Length | None = None


class _Yarn(msgspec.Struct, frozen=True, kw_only=True):
    factor: _Factor | None = None
    original_max_position_embeddings: _Length | None = None
    beta_fast: _Coefficient | None = None
    beta_slow: _Coefficient | None = None
    attention_factor: _Coefficient | None = None
    mscale: _Coefficient | None = None
    mscale_all_dim: _Coefficient | None = None
    truncate: bool | None = None


class _LongRope(msgspec.Struct, frozen=True, kw_only=True):
    short_factor: _Divisors
    long_factor: _Divisors
    factor: _Factor | None = None
    original_max_position_embeddings: _Length | None = None
    attention_factor: _Coefficient | None = None


def parse_rope(
    raw: Mapping[str, object],
    *,
    max_position: int,
    default_theta: float = 10000.0,
    ignore_unknown: bool = False,
    origin: str = "model config",
) -> RopeParameters:
    """The rotary embedding that ``raw`` describes, with the defaults of the reference implementation.

    ``rope_theta`` and ``partial_rotary_factor`` within the table win over those beside it. The length of pre-training
    is ``original_max_position_embeddings`` beside the table, else within it, else ``max_position``; the dynamic rule
    always takes ``max_position``. A yarn or longrope ``factor`` that is not given is the ratio of ``max_position`` to
    that length.

    Args:
        raw: A ``config.json``-shaped mapping.
        max_position: Context length in tokens.
        default_theta: Base where ``raw`` gives none.
        ignore_unknown: Pass over unknown keys of the table.
        origin: What ``raw`` is, for messages.

    Raises:
        ConfigError: An unknown rule or key, a missing key, a value out of bounds, or two spellings that disagree.
    """
    name, table = _table(raw, origin)
    where = f"{origin}: {name}"
    rule = _rule(table, where)
    theta = _first(table, raw, "rope_theta", default_theta)
    share = _first(table, raw, "partial_rotary_factor", 1.0)
    body = {key: value for key, value in table.items() if key not in _SHARED_KEYS}
    outer = raw.get("original_max_position_embeddings")
    if outer is not None and rule in _WITH_ORIGINAL:
        body["original_max_position_embeddings"] = outer
    return RopeParameters(
        theta=convert(theta, _Theta, what=f"{origin}: rope_theta"),
        partial_rotary_factor=convert(share, _Share, what=f"{origin}: partial_rotary_factor"),
        scaling=_scaling(rule, body, max_position, where=where, ignore_unknown=ignore_unknown),
    )


_SHARED_KEYS = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
_WITH_ORIGINAL = ("llama3", "yarn", "longrope")
_RULES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")


def _table(raw: Mapping[str, object], origin: str) -> tuple[str, Mapping[str, object]]:
    given: list[tuple[str, Mapping[str, object]]] = []
    for name in ("rope_scaling", "rope_parameters"):
        table = raw.get(name)
        if table is not None and not isinstance(table, Mapping):
            raise ConfigError(f"{origin}: {name} must be a table, got {shown(table)}")
        if table:
            given.append((name, table))
    if len(given) == 2 and given[0][1] != given[1][1]:
        raise ConfigError(f"{origin}: rope_scaling and rope_parameters disagree", hint="keep one of them")
    name, table = given[0] if given else ("rope_parameters", {})
    if any(isinstance(value, Mapping) for value in table.values()):
        raise ConfigError(f"{origin}: {name} has a table per layer type, this family takes one for all layers")
    return name, table


def _rule(table: Mapping[str, object], where: str) -> str:
    old, new = table.get("type"), table.get("rope_type")
    if old is not None and new is not None and old != new:
        raise ConfigError(f"{where}: type {shown(old)} and rope_type {shown(new)} disagree", hint="keep one of them")
    rule = next((name for name in (new, old) if name is not None), "default")
    if rule not in _RULES:
        guess = did_you_mean(rule, _RULES) if isinstance(rule, str) else None
        raise ConfigError(f"{where}: unknown rope type {shown(rule)}; known are {', '.join(_RULES)}", hint=guess)
    return str(rule)


def _first(table: Mapping[str, object], raw: Mapping[str, object], key: str, default: float) -> object:
    return next((value for value in (table.get(key), raw.get(key)) if value is not None), default)


def _scaling(
    rule: str, body: Mapping[str, object], max_position: int, *, where: str, ignore_unknown: bool
) -> RopeScaling | None:
    def read(cls: type[T]) -> T:
        return _fill(cls, body, f"{where} of type {rule}", ignore_unknown=ignore_unknown)

    match rule:
        case "linear":
            return LinearScaling(factor=read(_Linear).factor)
        case "dynamic":
            return DynamicScaling(factor=read(_Dynamic).factor, original_max_position=max_position)
        case "llama3":
            return _llama3(read(_Llama3), max_position, where)
        case "yarn":
            return _yarn(read(_Yarn), max_position, where)
        case "longrope":
            return _longrope(read(_LongRope), max_position, where)
    read(_Default)
    return None


def _fill(cls: type[T], body: Mapping[str, object], where: str, *, ignore_unknown: bool) -> T:
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in body.items():
        if key in fields:
            if value is not None:
                values[key] = convert(value, fields[key].type, what=f"{where}: {key}")
        elif not ignore_unknown:
            guess = did_you_mean(key, fields) if isinstance(key, str) else None
            raise ConfigError(f"{where}: unknown key {shown(key)}", hint=guess)
    if missing := [name for name, field in fields.items() if field.required and name not in values]:
        raise ConfigError(f"{where}: {', '.join(missing)} missing")
    return cls(**values)


def _llama3(read: _Llama3, max_position: int, where: str) -> Llama3Scaling:
    if read.high_freq_factor <= read.low_freq_factor:
        raise ConfigError(
            f"{where}: high_freq_factor must be above low_freq_factor {read.low_freq_factor}, "
            f"got {read.high_freq_factor}"
        )
    return Llama3Scaling(
        factor=read.factor,
        low_freq_factor=read.low_freq_factor,
        high_freq_factor=read.high_freq_factor,
        original_max_position=read.original_max_position_embeddings or max_position,
    )


def _yarn(read: _Yarn, max_position: int, where: str) -> YarnScaling:
    if read.factor is None and read.original_max_position_embeddings is None:
        raise ConfigError(f"{where}: factor or original_max_position_embeddings missing")
    # Zero stands for "not given" here, as in the reference implementation.
    beta_fast, beta_slow = read.beta_fast or 32.0, read.beta_slow or 1.0
    if beta_fast < beta_slow:
        raise ConfigError(f"{where}: beta_fast must be at least beta_slow {beta_slow}, got {beta_fast}")
    return YarnScaling(
        factor=_factor(read, max_position),
        original_max_position=read.original_max_position_embeddings or max_position,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=read.attention_factor,
        mscale=read.mscale or None,
        mscale_all_dim=read.mscale_all_dim or None,
        truncate=read.truncate is not False,
    )


def _longrope(read: _LongRope, max_position: int, where: str) -> LongRopeScaling:
    if len(read.short_factor) != len(read.long_factor):
        raise ConfigError(
            f"{where}: short_factor and long_factor must be of one length, "
            f"got {len(read.short_factor)} and {len(read.long_factor)}"
        )
    return LongRopeScaling(
        short_factor=read.short_factor,
        long_factor=read.long_factor,
        original_max_position=read.original_max_position_embeddings or max_position,
        factor=_factor(read, max_position),
        attention_factor=read.attention_factor,
    )


def _factor(read: _Yarn | _LongRope, max_position: int) -> float:
    if read.factor is not None:
        return read.factor
    return max_position / (read.original_max_position_embeddings or max_position)
