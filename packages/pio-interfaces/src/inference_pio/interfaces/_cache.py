"""What a layer keeps of the past, and how layers share pages.

A cache is a pool of pages. Layers that keep the same positions form a group: one block table per sequence serves all of
them. Who owns which page is bookkeeping without tensors; the storage only follows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

GroupKind = Literal["full", "window", "state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """Keys and values of every token, or of the last ``window`` tokens.

    Attributes:
        num_kv_heads: ``K``.
        head_dim: ``D``.
        window: Tokens that a query can see, its own included; None keeps all.
    """

    num_kv_heads: int
    head_dim: int
    window: int | None = None

    @property
    def elements_per_token(self) -> int:
        """Elements stored per token."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpec:
    """One compressed vector for the keys and values of all heads (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Attributes:
        rank: Size of the latent vector, from which keys and values are projected.
        rope_dim: Size of the shared rotary key beside it.
    """

    rank: int
    rope_dim: int

    @property
    def elements_per_token(self) -> int:
        """Elements stored per token."""
        return self.rank + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """A state of fixed size per sequence, changed by every token: recurrent layers, linear attention, convolutions.

    Attributes:
        shapes: Shapes of the tensors of one sequence's state; kept in float32.
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def elements(self) -> int:
        """Elements stored per sequence."""
        return sum(prod(shape) for shape in self.shapes)


LayerCacheSpec = KVSpec | LatentSpec | StateSpec
"""What one layer keeps of the past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that keep the same positions, and so share block tables.

    Attributes:
        kind: ``"full"`` keeps every token, ``"window"`` the last ones; ``"state"`` has one page per sequence.
        window: Of ``"window"``: tokens that a query can see, its own included.
        layers: Indices of the layers.
    """

    kind: GroupKind
    window: int | None
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """The pages of one group of layers.

    Attributes:
        kind: As in :class:`LayerGroup`.
        window: As in :class:`LayerGroup`.
        num_pages: Pages on the device, each in every layer of the group.
        num_host_pages: Pages in host memory, to which pages of the device can be moved; 0 where the host is the device.
    """

    kind: GroupKind
    window: int | None = None
    num_pages: int
    num_host_pages: int = 0

    def __post_init__(self) -> None:
        if (self.kind == "window") != (self.window is not None):
            msg = f"a group has a window if its kind is 'window', got {self.kind!r} and {self.window}"
            raise ValueError(msg)
        if self.num_pages < 1 or self.num_host_pages < 0:
            msg = f"a group needs at least 1 page and 0 host pages, got {self.num_pages} and {self.num_host_pages}"
            raise ValueError(msg)


def group_layers(specs: Sequence[LayerCacheSpec]) -> tuple[LayerGroup, ...]:
    """The groups of a model's layers: those that keep every token first, then windows by size, states last."""
    members: dict[tuple[GroupKind, int | None], list[int]] = {}
    for layer, spec in enumerate(specs):
        members.setdefault(_kind(spec), []).append(layer)
    order = {"full": 0, "window": 1, "state": 2}
    ranked = sorted(members, key=lambda key: (order[key[0]], key[1] or 0))
    return tuple(LayerGroup(kind=kind, window=window, layers=tuple(members[kind, window])) for kind, window in ranked)


def _kind(spec: LayerCacheSpec) -> tuple[GroupKind, int | None]:
    match spec:
        case StateSpec():
            return "state", None
        case KVSpec(window=int(window)):
            return "window", window
        case _:
            return "full", None
