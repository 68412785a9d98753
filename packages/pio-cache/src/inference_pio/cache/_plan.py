"""How many pages each group gets from a budget of memory."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from inference_pio.interfaces import CacheGroup, DoesNotFitError, StateSpec, group_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.interfaces import LayerCacheSpec, LayerGroup

_STATE_BYTES = 4  # states are float32 always
_STATE_SHARE = 2  # states of running sequences take at most one in so many bytes, where tokens have pages too
_CHECKPOINT_SHARE = 8  # and checkpoints one in so many
_CHECKPOINTS = 16  # per running sequence; more are of no use


def plan_groups(
    specs: Sequence[LayerCacheSpec],
    *,
    budget_bytes: int,
    dtype_bytes: float,
    page_size: int,
    max_num_seqs: int,
    max_model_len: int,
    max_step_tokens: int,
    host_budget_bytes: int = 0,
) -> tuple[CacheGroup, ...]:
    """Share a budget among the groups of a model's layers, in the order of ``group_layers(specs)``.

    Each group gets what one sequence of ``max_model_len`` tokens needs. Of the rest, states get enough for
    ``max_num_seqs`` sequences and some checkpoints, but not more than a part; windows what ``max_num_seqs`` sequences
    can hold in a step, but not more than their layers' share; the layers that keep all tokens get what remains, but not
    more than ``max_num_seqs`` sequences of ``max_model_len`` tokens need.

    Args:
        specs: What each layer keeps.
        budget_bytes: Bytes on the device.
        dtype_bytes: Bytes per stored element of keys and values, scales included. States are float32 always.
        page_size: Tokens per page.
        max_num_seqs: Sequences that run at once.
        max_model_len: Tokens of the longest sequence.
        max_step_tokens: Tokens that one step computes, of all sequences together.
        host_budget_bytes: Bytes of host memory to which pages may be moved, shared as the device's are.

    Raises:
        DoesNotFitError: Not even one sequence of ``max_model_len`` tokens fits.
        ValueError: No layer, or a number that is not positive.
    """
    sizes = (dtype_bytes, page_size, max_num_seqs, max_model_len, max_step_tokens)
    if not specs or min(sizes) <= 0 or host_budget_bytes < 0:
        msg = f"a plan needs layers and positive sizes, got {len(specs)} layers and {sizes}, host {host_budget_bytes}"
        raise ValueError(msg)
    groups = group_layers(specs)
    bytes_ = [_page_bytes(specs, group, page_size, dtype_bytes) for group in groups]
    if not min(bytes_):
        msg = f"each layer must keep something, got {specs}"
        raise ValueError(msg)
    load = _Load(page_size, max_model_len, max_step_tokens)
    least = [load.pages(group, 1) for group in groups]
    rest = budget_bytes - _weigh(least, bytes_)
    if rest < 0:
        raise _does_not_fit(groups, bytes_, budget_bytes, load)
    counts = list(least)
    spread = sum(size for group, size in zip(groups, bytes_, strict=True) if group.kind != "state")
    limit = rest
    for index in sorted(range(len(groups)), key=lambda index: ("state", "window", "full").index(groups[index].kind)):
        group, size = groups[index], bytes_[index]
        if group.kind == "state":
            more = min(max_num_seqs - 1, limit // (_STATE_SHARE if spread else 1) // size)
            part = limit // _CHECKPOINT_SHARE if spread else limit - more * size
            more += min(_CHECKPOINTS * max_num_seqs, part // size)
        elif group.kind == "window":
            more = min(load.pages(group, max_num_seqs) - least[index], int(limit * size / spread) // size)
        else:
            more = min(load.pages(group, max_num_seqs) - least[index], rest // size)
        counts[index] += more
        rest -= more * size
        if group.kind == "state":
            limit = rest
    moved = host_budget_bytes / _weigh(counts, bytes_)
    return tuple(
        CacheGroup(kind=group.kind, window=group.window, num_pages=count, num_host_pages=int(count * moved))
        for group, count in zip(groups, counts, strict=True)
    )


class _Load:
    """What running sequences hold at most, in pages."""

    def __init__(self, page_size: int, max_model_len: int, max_step_tokens: int) -> None:
        self.page_size = page_size
        self.max_model_len = max_model_len
        self.max_step_tokens = max_step_tokens

    def pages(self, group: LayerGroup, num_seqs: int) -> int:
        """Pages that ``num_seqs`` sequences need in ``group``.

        In a step of ``s`` tokens a sequence sees ``w - 1 + s`` positions, which lie on up to ``(w + s + 2P - 3) // P``
        pages; the steps of all sequences have ``max_step_tokens`` tokens together.
        """
        if group.kind == "state":
            return num_seqs
        whole = num_seqs * ceil(self.max_model_len / self.page_size)
        if group.window is None:
            return whole
        step = min(self.max_step_tokens, num_seqs * self.max_model_len)
        seen = num_seqs * (group.window + 2 * self.page_size - 3) + step
        return min(whole, seen // self.page_size)


def _page_bytes(specs: Sequence[LayerCacheSpec], group: LayerGroup, page_size: int, dtype_bytes: float) -> int:
    """Bytes of one page in all layers of a group."""
    total = 0
    for layer in group.layers:
        spec = specs[layer]
        if isinstance(spec, StateSpec):
            total += _STATE_BYTES * spec.elements
        else:
            total += ceil(spec.elements_per_token * page_size * dtype_bytes)
    return total


def _weigh(counts: Sequence[int], bytes_: Sequence[int]) -> int:
    return sum(count * size for count, size in zip(counts, bytes_, strict=True))


def _does_not_fit(
    groups: Sequence[LayerGroup], bytes_: Sequence[int], budget_bytes: int, load: _Load
) -> DoesNotFitError:
    """The error, with the longest sequence that would fit."""

    def need(length: int) -> int:
        shorter = _Load(load.page_size, length, load.max_step_tokens)
        return _weigh([shorter.pages(group, 1) for group in groups], bytes_)

    fits, too_long = 0, load.max_model_len
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if need(middle) <= budget_bytes else (fits, middle)
    hint = f"raise the memory budget to {need(load.max_model_len)} bytes"
    if fits:
        hint += f", or lower max_model_len to {fits}"
    return DoesNotFitError(
        f"the cache of one sequence of {load.max_model_len} tokens needs {need(load.max_model_len)} bytes, "
        f"the budget is {budget_bytes}",
        hint=hint,
    )
