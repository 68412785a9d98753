"""What goes where: the rules of a model against the tensors of a checkpoint, checked before any of them is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from inference_pio.interfaces import MalformedFileError
from inference_pio.kernels._program import Embed, Head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inference_pio.interfaces import TensorInfo, WeightMap, WeightRule, WeightSource
    from inference_pio.kernels._program import Program

_WRONG_CONFIG = "the sizes in the config do not belong to these weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of a parameter that lie side by side in one tensor.

    Attributes:
        info: The tensor.
        stored: First of them among the rows of the tensor; all dimensions but the last one count as rows.
        row: First of them among the rows of the parameter.
        rows: How many.
        heads: Heads that they are, to be brought from interleaved to half-split order, or 0.
    """

    info: TensorInfo
    stored: int
    row: int
    rows: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A parameter and what it is made from.

    Attributes:
        name: The parameter.
        shape: Its shape in the program: a vector, a matrix, or one matrix per expert.
        parts: In the order of the parameter's rows.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def is_vector(self) -> bool:
        """Whether it is used as float32 numbers rather than in tiles."""
        return len(self.shape) == 1

    @property
    def rows(self) -> int:
        """Rows of the matrix, those of all experts together; elements of a vector."""
        return self.shape[0] if self.is_vector else prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Elements per row."""
        return 1 if self.is_vector else self.shape[-1]


def plan_weights(program: Program, source: WeightSource, weight_map: WeightMap, *, tied_head: bool) -> list[Assignment]:
    """Match ``weight_map`` with the parameters of ``program`` and the tensors of ``source``.

    Raises:
        MalformedFileError: A tensor is missing, of another shape than its parameter, or of no use to the model.
        ValueError: The weight map does not fit the program, whatever the checkpoint.
    """
    shapes = program.parameters
    _check_tied(program, tied_head=tied_head)
    assignments: dict[str, Assignment] = {}
    for rule in weight_map.rules:
        if rule.optional and not any(name in source for name in rule.sources):
            continue
        if rule.target not in shapes:
            way = ": lower it untied" if rule.optional else ""
            raise ValueError(f"the weight map fills {rule.target!r}, which the program does not have{way}")
        if rule.target in assignments:
            raise ValueError(f"the weight map has two rules for {rule.target!r}")
        assignments[rule.target] = _assign(rule, shapes[rule.target], source)
    for name, shape in shapes.items():
        if name not in assignments:
            raise _unfilled(name, shape, source, weight_map)
    _refuse_unused(source, weight_map)
    return [assignments[name] for name in shapes]


def _check_tied(program: Program, *, tied_head: bool) -> None:
    tables = {op.weight for op in program.ops if isinstance(op, Embed)}
    heads = {op.weight for op in program.ops if isinstance(op, Head)}
    if (heads <= tables) != tied_head:
        names = ", ".join(sorted(heads))
        raise ValueError(f"tied_head is {tied_head}, and the program's head is {names}, its table {', '.join(tables)}")


def _assign(rule: WeightRule, shape: tuple[int, ...], source: WeightSource) -> Assignment:
    target = rule.target
    heads = rule.heads or (0,) * len(rule.sources)
    if not rule.sources or len(heads) != len(rule.sources):
        raise ValueError(f"the rule of {target!r} has {len(rule.sources)} sources and {len(rule.heads)} head counts")
    missing = [name for name in rule.sources if name not in source]
    if missing:
        raise MalformedFileError(
            _where(source),
            f"tensor {missing[0]!r}",
            f"missing; parameter {target} {shape} is made from it",
            hint="the checkpoint is incomplete, or of another architecture than its config says",
        )
    infos = tuple(source.info(name) for name in rule.sources)
    for info, count in zip(infos, heads, strict=True):
        _check_shape(info, shape, target, alone=len(infos) == 1)
        if count and info.shape[0] % (2 * count):
            raise MalformedFileError(
                info.file,
                f"tensor {info.name!r}",
                f"its {info.shape[0]} rows of shape {info.shape} are not {count} heads of an even number of rows",
                hint="the head count of the config does not belong to these weights",
            )
    wanted = shape[0] if len(shape) == 1 else prod(shape[:-1])
    rows = sum(_rows(info) for info in infos)
    if rows != wanted:
        described = " + ".join(f"{info.name} {info.shape}" for info in infos)
        raise MalformedFileError(
            infos[0].file,
            f"tensors of {target}",
            f"{described} have {rows} rows, the parameter {shape} has {wanted}",
            hint=_WRONG_CONFIG,
        )
    return Assignment(name=target, shape=shape, parts=tuple(_parts(infos, heads)))


def _rows(info: TensorInfo) -> int:
    return info.shape[0] if len(info.shape) == 1 else prod(info.shape[:-1])


def _parts(infos: tuple[TensorInfo, ...], heads: tuple[int, ...]) -> Iterator[Part]:
    """Tensors one after the other; those that hold all experts are joined expert by expert."""
    row = 0
    for expert in range(infos[0].shape[0] if len(infos[0].shape) == 3 else 1):
        for info, count in zip(infos, heads, strict=True):
            rows = info.shape[1] if len(info.shape) == 3 else info.shape[0]
            yield Part(info=info, stored=expert * rows, row=row, rows=rows, heads=count)
            row += rows


def _check_shape(info: TensorInfo, shape: tuple[int, ...], target: str, *, alone: bool) -> None:
    """The whole shape if the tensor fills the parameter alone, else all dimensions but those it is joined along."""
    if alone:
        fits = info.shape == shape
    elif len(shape) == 3 and len(info.shape) == 3:  # all experts
        fits = info.shape[::2] == shape[::2]
    elif len(shape) == 3:  # one expert, or a part of it
        fits = len(info.shape) == 2 and info.shape[1] == shape[2]
    else:
        fits = len(info.shape) == len(shape) and info.shape[1:] == shape[1:]
    if not fits:
        wanted = str(shape) if alone else f"rows of {shape}"
        raise MalformedFileError(
            info.file,
            f"tensor {info.name!r}",
            f"has shape {info.shape}, but parameter {target} takes {wanted}",
            hint=_WRONG_CONFIG,
        )


def _unfilled(name: str, shape: tuple[int, ...], source: WeightSource, weight_map: WeightMap) -> Exception:
    """The error for a parameter that nothing filled: the file's fault if a rule was skipped, else the model's."""
    for rule in weight_map.rules:
        if rule.target == name:
            return MalformedFileError(
                _where(source),
                f"tensor {rule.sources[0]!r}",
                f"missing, and parameter {name} {shape} is not tied to another",
                hint="lower the model with this parameter tied, or use a complete checkpoint",
            )
    return ValueError(f"the weight map has no rule for {name!r} {shape}")


def _refuse_unused(source: WeightSource, weight_map: WeightMap) -> None:
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


def _where(source: WeightSource) -> Path | str:
    """The file of ``source``, or the folder of its files."""
    files = sorted({source.info(name).file for name in source})
    if not files:
        return "empty checkpoint"
    return files[0] if len(files) == 1 else files[0].parent
