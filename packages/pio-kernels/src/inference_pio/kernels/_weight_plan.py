"""What goes where: the rules of a model against the tensors of a checkpoint, checked before any of them is read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from inference_pio.interfaces import match_rule, refuse_unfilled, refuse_unused
from inference_pio.kernels._program import Embed, Head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference_pio.interfaces import TensorInfo, WeightMap, WeightRule, WeightSource
    from inference_pio.kernels._program import Program

_UNTIED = "lower the model with this parameter tied, or use a complete checkpoint"


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
            refuse_unfilled((name,), shape, source, weight_map, hint=_UNTIED)
    refuse_unused(source, weight_map)
    return [assignments[name] for name in shapes]


def _check_tied(program: Program, *, tied_head: bool) -> None:
    tables = {op.weight for op in program.ops if isinstance(op, Embed)}
    heads = {op.weight for op in program.ops if isinstance(op, Head)}
    if (heads <= tables) != tied_head:
        names = ", ".join(sorted(heads))
        raise ValueError(f"tied_head is {tied_head}, and the program's head is {names}, its table {', '.join(tables)}")


def _assign(rule: WeightRule, shape: tuple[int, ...], source: WeightSource) -> Assignment:
    matched = match_rule(rule, shape, source, _rows)
    return Assignment(name=rule.target, shape=shape, parts=tuple(_parts(matched)))


def _rows(stored: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Vectors and matrices are joined along the first dimension; those of all experts expert by expert."""
    if len(shape) == 3 and len(stored) == 3:  # all experts
        fits = stored[::2] == shape[::2]
    elif len(shape) == 3:  # one expert, or a part of it
        fits = len(stored) == 2 and stored[1] == shape[2]
    else:
        fits = len(stored) == len(shape) and stored[1:] == shape[1:]
    if not fits:
        return None
    return stored[0] if len(stored) == 1 else prod(stored[:-1])


def _parts(matched: tuple[tuple[TensorInfo, int], ...]) -> Iterator[Part]:
    """Tensors one after the other; those that hold all experts are joined expert by expert."""
    row = 0
    first = matched[0][0].shape
    for expert in range(first[0] if len(first) == 3 else 1):
        for info, count in matched:
            rows = info.shape[1] if len(info.shape) == 3 else info.shape[0]
            yield Part(info=info, stored=expert * rows, row=row, rows=rows, heads=count)
            row += rows
