"""What goes where: the rules of a model against the tensors of a checkpoint, checked before anything is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from inference_pio.interfaces import TensorInfo, WeightMap, WeightRule, WeightSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One parameter or buffer of a module, under all of its names: a tied head makes two.

    Attributes:
        names: Qualified names; the first is the one that messages use.
        tensor: What stands there now, on ``meta``.
    """

    names: tuple[str, ...]
    tensor: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One slot and the tensors that fill it, concatenated along the first dimension.

    Attributes:
        slot: What is filled.
        sources: Header entries, in order.
        heads: Per source, heads whose rows are to be brought from interleaved to half-split order, or 0.
    """

    slot: Slot
    sources: tuple[TensorInfo, ...]
    heads: tuple[int, ...]


def plan(module: nn.Module, source: WeightSource, weight_map: WeightMap) -> list[Assignment]:
    """Match ``weight_map`` with the slots of ``module`` and the tensors of ``source``.

    Raises:
        MalformedFileError: A tensor is missing, of another shape than its parameter, or of no use to the model.
        ValueError: The weight map does not fit the module, whatever the checkpoint.
    """
    slots = _slots(module)
    assignments: dict[int, Assignment] = {}
    for rule in weight_map.rules:
        slot = slots.get(rule.target)
        if slot is None:
            raise ValueError(f"the weight map fills {rule.target!r}, which {type(module).__name__} does not have")
        if rule.optional and not any(name in source for name in rule.sources):
            continue
        if id(slot) in assignments:
            raise ValueError(
                f"the checkpoint has tensors for each of {', '.join(slot.names)}, which are one parameter of "
                f"{type(module).__name__}: build it untied"
            )
        assignments[id(slot)] = _assign(slot, rule, source)
    for slot in slots.values():
        if id(slot) not in assignments:
            raise _unfilled(slot, source, weight_map)
    _refuse_unused(source, weight_map)
    return list(assignments.values())


def _slots(module: nn.Module) -> dict[str, Slot]:
    """Every parameter and buffer by every name, shared ones under one slot."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))  # type: ignore[arg-type]  # dict of Tensor at large
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    slots = {key: Slot(names=tuple(aliases), tensor=tensors[aliases[0]]) for key, aliases in names.items()}
    return {name: slots[id(tensor)] for name, tensor in tensors.items()}


def _assign(slot: Slot, rule: WeightRule, source: WeightSource) -> Assignment:
    target, shape = rule.target, tuple(slot.tensor.shape)
    heads = rule.heads or (0,) * len(rule.sources)
    if not rule.sources or len(heads) != len(rule.sources):
        raise ValueError(f"the rule of {target!r} has {len(rule.sources)} sources and {len(rule.heads)} head counts")
    if not slot.tensor.is_floating_point() or not shape:
        raise ValueError(f"{target!r} must be floating point and have a dimension, got {slot.tensor.dtype}{shape}")
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
    rows = sum(info.shape[0] for info in infos)
    if rows != shape[0]:
        parts = " + ".join(f"{info.name} {info.shape}" for info in infos)
        raise MalformedFileError(
            infos[0].file,
            f"tensors of {target}",
            f"{parts} have {rows} rows, the parameter {shape} has {shape[0]}",
            hint=_WRONG_CONFIG,
        )
    return Assignment(slot=slot, sources=infos, heads=heads)


_WRONG_CONFIG = "the sizes in the config do not belong to these weights"


def _check_shape(info: TensorInfo, shape: tuple[int, ...], target: str, *, alone: bool) -> None:
    """The whole shape if the tensor fills the parameter alone, else all dimensions but the first."""
    fits = info.shape == shape if alone else len(info.shape) == len(shape) and info.shape[1:] == shape[1:]
    if not fits:
        wanted = str(shape) if alone else f"rows of {shape}"
        raise MalformedFileError(
            info.file,
            f"tensor {info.name!r}",
            f"has shape {info.shape}, but parameter {target} takes {wanted}",
            hint=_WRONG_CONFIG,
        )


def _unfilled(slot: Slot, source: WeightSource, weight_map: WeightMap) -> Exception:
    """The error for a slot that nothing filled: the file's fault if a rule was skipped, else the model's."""
    for rule in weight_map.rules:
        if rule.target in slot.names:
            return MalformedFileError(
                _where(source),
                f"tensor {rule.sources[0]!r}",
                f"missing, and parameter {rule.target} {tuple(slot.tensor.shape)} is not tied to another",
                hint="build the model with this parameter tied, or use a complete checkpoint",
            )
    return ValueError(f"the weight map has no rule for {slot.names[0]!r} {tuple(slot.tensor.shape)}")


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


def _where(source: WeightSource) -> Path:
    """The file of ``source``, or the folder of its files."""
    files: Sequence[Path] = sorted({source.info(name).file for name in source})
    if not files:
        return Path("empty checkpoint")
    return files[0] if len(files) == 1 else files[0].parent
