"""What goes where: the rules of a model against the tensors of a checkpoint, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import match_rule, refuse_unfilled, refuse_unused

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inference_pio.interfaces import TensorInfo, WeightMap, WeightRule, WeightSource

_UNTIED = "build the model with this parameter tied, or use a complete checkpoint"


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
            refuse_unfilled(slot.names, tuple(slot.tensor.shape), source, weight_map, hint=_UNTIED)
    refuse_unused(source, weight_map)
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
    shape = tuple(slot.tensor.shape)
    if not slot.tensor.is_floating_point() or not shape:
        raise ValueError(f"{rule.target!r} must be floating point and have a dimension, got {slot.tensor.dtype}{shape}")
    matched = match_rule(rule, shape, source, _rows)
    return Assignment(slot=slot, sources=tuple(info for info, _ in matched), heads=tuple(heads for _, heads in matched))


def _rows(stored: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Tensors are joined along the first dimension."""
    return stored[0] if len(stored) == len(shape) and stored[1:] == shape[1:] else None
