"""The rules of a model against the tensors of a checkpoint: what every loader checks before it reads any of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from inference_pio.interfaces._errors import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from inference_pio.interfaces._weights import TensorInfo, WeightMap, WeightRule, WeightSource

    RowsOf = Callable[[tuple[int, ...], tuple[int, ...]], int | None]

_WRONG_CONFIG = "the sizes in the config do not belong to these weights"


def match_rule(
    rule: WeightRule, shape: tuple[int, ...], source: WeightSource, rows_of: RowsOf
) -> tuple[tuple[TensorInfo, int], ...]:
    """The tensors that ``rule`` makes a parameter of ``shape`` from, each with its heads, in order.

    Args:
        rule: Of that parameter; its tensors must be there even if it is optional.
        shape: Of the parameter, as the config has it.
        source: The checkpoint.
        rows_of: How tensors are joined: the rows that one of the first shape brings to a parameter of the second, or
            None if it cannot be a part of it. Given the same shape twice, it tells the rows of the parameter.

    Raises:
        MalformedFileError: A tensor is missing, or does not have the shape or the rows that the parameter takes.
        ValueError: The rule names no tensors, or heads for other than each of them.
    """
    heads = rule.heads or (0,) * len(rule.sources)
    if not rule.sources or len(heads) != len(rule.sources):
        raise ValueError(
            f"the rule of {rule.target!r} has {len(rule.sources)} sources and {len(rule.heads)} head counts"
        )
    missing = [name for name in rule.sources if name not in source]
    if missing:
        raise MalformedFileError(
            _place(source),
            f"tensor {missing[0]!r}",
            f"missing; parameter {rule.target} {shape} is made from it",
            hint="the checkpoint is incomplete, or of another architecture than its config says",
        )
    matched = tuple((source.info(name), count) for name, count in zip(rule.sources, heads, strict=True))
    for info, count in matched:
        _check_shape(info, shape, rule.target, rows_of, alone=len(matched) == 1)
        _check_heads(info, count)
    _check_rows([info for info, _ in matched], shape, rule.target, rows_of)
    return matched


def refuse_unused(source: WeightSource, weight_map: WeightMap) -> None:
    """Hold ``source`` to the tensors that ``weight_map`` takes or ignores.

    Raises:
        MalformedFileError: There is another one; the message names it and counts the rest.
    """
    used = {name for rule in weight_map.rules for name in rule.sources}
    ignored = [re.compile(pattern) for pattern in weight_map.ignore]
    unused = [name for name in source if name not in used and not any(p.fullmatch(name) for p in ignored)]
    if unused:
        info = source.info(unused[0])
        others = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
        raise MalformedFileError(
            info.file,
            f"tensor {info.name!r}",
            f"no parameter of the model takes this tensor of shape {info.shape}{others}",
            hint="the checkpoint is of another architecture than its config says, or the model's weight map must "
            "list the tensor under ignore",
        )


def refuse_unfilled(
    names: Sequence[str], shape: tuple[int, ...], source: WeightSource, weight_map: WeightMap, *, hint: str
) -> NoReturn:
    """Refuse a parameter that no rule of ``weight_map`` filled.

    Args:
        names: Of the parameter; the first is the one that messages use.
        shape: Of the parameter.
        source: The checkpoint.
        weight_map: The rules; if an optional one of this parameter was skipped, the checkpoint is at fault.
        hint: What to do if it is.

    Raises:
        MalformedFileError: The tensor of an optional rule is missing, and the parameter is not tied.
        ValueError: The weight map has no rule for it.
    """
    for rule in weight_map.rules:
        if rule.target in names:
            raise MalformedFileError(
                _place(source),
                f"tensor {rule.sources[0]!r}",
                f"missing, and parameter {rule.target} {shape} is not tied to another",
                hint=hint,
            )
    raise ValueError(f"the weight map has no rule for {names[0]!r} {shape}")


def _check_shape(info: TensorInfo, shape: tuple[int, ...], target: str, rows_of: RowsOf, *, alone: bool) -> None:
    """The whole shape if the tensor fills the parameter alone, else all dimensions but those it is joined along."""
    fits = info.shape == shape if alone else rows_of(info.shape, shape) is not None
    if not fits:
        wanted = str(shape) if alone else f"rows of {shape}"
        raise MalformedFileError(
            info.file,
            f"tensor {info.name!r}",
            f"has shape {info.shape}, but parameter {target} takes {wanted}",
            hint=_WRONG_CONFIG,
        )


def _check_heads(info: TensorInfo, heads: int) -> None:
    if heads and info.shape[0] % (2 * heads):
        raise MalformedFileError(
            info.file,
            f"tensor {info.name!r}",
            f"its {info.shape[0]} rows of shape {info.shape} are not {heads} heads of an even number of rows",
            hint="the head count of the config does not belong to these weights",
        )


def _check_rows(infos: Sequence[TensorInfo], shape: tuple[int, ...], target: str, rows_of: RowsOf) -> None:
    rows, wanted = sum(rows_of(info.shape, shape) or 0 for info in infos), rows_of(shape, shape)
    if rows != wanted:
        parts = " + ".join(f"{info.name} {info.shape}" for info in infos)
        raise MalformedFileError(
            infos[0].file,
            f"tensors of {target}",
            f"{parts} have {rows} rows, the parameter {shape} has {wanted}",
            hint=_WRONG_CONFIG,
        )


def _place(source: WeightSource) -> Path | str:
    """The file of ``source``, or the folder of its files."""
    files = sorted({source.info(name).file for name in source})
    if not files:
        return "empty checkpoint"
    return files[0] if len(files) == 1 else files[0].parent
