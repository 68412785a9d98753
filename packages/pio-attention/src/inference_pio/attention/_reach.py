"""How far a query sees, as two distances: the form in which all fast backends take causality and windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec


class Reach(NamedTuple):
    """A query at position ``p`` sees keys at ``p - back .. p + ahead``; -1 stands for no limit.

    Attributes:
        back: Distance to the earliest key.
        ahead: Distance to the latest key.
    """

    back: int
    ahead: int


def reach(spec: AttentionSpec) -> Reach:
    """The reach of ``spec``. Without ``spec.causal`` a window extends as far ahead as back."""
    back = -1 if spec.window is None else spec.window - 1
    return Reach(back, 0 if spec.causal else back)


def key_range(first: int, last: int, num_keys: int, limits: Reach) -> tuple[int, int]:
    """The half-open range of keys that queries at positions ``first .. last`` see between them; may be empty."""
    low = 0 if limits.back < 0 else max(0, first - limits.back)
    high = num_keys if limits.ahead < 0 else min(num_keys, last + limits.ahead + 1)
    return low, high


def band(queries: range, keys: range, limits: Reach, device: torch.device) -> Tensor:
    """Which of the keys each query sees, bool (T, S), for queries and keys at these positions."""
    query = torch.arange(queries.start, queries.stop, device=device)
    distance = torch.arange(keys.start, keys.stop, device=device) - query.unsqueeze(1)  # (T, S)
    if limits.back < 0:
        return distance <= limits.ahead
    return (distance >= -limits.back) & (distance <= limits.ahead)
