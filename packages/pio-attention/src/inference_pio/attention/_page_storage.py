"""The pages of all layers of a model, group by group; on the device, and in host memory beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.attention._layer_pages import LayerPages
from inference_pio.attention._layer_states import LayerStates, StateLayout
from inference_pio.attention._page_layout import PageLayout
from inference_pio.attention._rows import Int8Rows, PlainRows
from inference_pio.interfaces import AttentionSpec, CacheGroup, DoesNotFitError, KVSpec, LatentSpec, StateSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from inference_pio.attention._rows import Rows
    from inference_pio.interfaces import LayerCacheSpec, LayerGroup

_SCALE_BYTES = 4


def cache_spec(spec: AttentionSpec | LayerCacheSpec) -> LayerCacheSpec:
    """What a layer keeps: an ``AttentionSpec`` keeps its keys and values.

    Raises:
        ValueError: An ``AttentionSpec`` with values of another size than its keys: whether these are stored once or
            apart it does not say.
    """
    if not isinstance(spec, AttentionSpec):
        return spec
    if spec.output_dim != spec.head_dim:
        raise ValueError(f"give a LatentSpec for a layer with head_dim {spec.head_dim} and value_dim {spec.value_dim}")
    return KVSpec(num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, window=spec.window)


def token_bytes(spec: LayerCacheSpec, dtype: torch.dtype) -> int:
    """Bytes that one layer stores per token; 0 for a state."""
    if isinstance(spec, StateSpec):
        return 0
    vectors = 1 if isinstance(spec, LatentSpec) else 2 * spec.num_kv_heads
    scales = vectors * _SCALE_BYTES if dtype == torch.int8 else 0
    return spec.elements_per_token * dtype.itemsize + scales


class PageStorage:
    """The storage behind the caches of this package.

    Args:
        specs: What each layer keeps.
        layer_groups: Which layers share block tables; every layer is in one of them.
        num_pages: Pages of each group.
        num_host_pages: Pages of each group in host memory.
        page_size: ``P``, in tokens.
        dtype: Of keys and values; states are float32.
        device: Where the pages lie.

    Raises:
        ValueError: The dtype is neither floating-point nor int8.
        DoesNotFitError: The device or the host has no room.
    """

    def __init__(
        self,
        specs: Sequence[LayerCacheSpec],
        layer_groups: Sequence[LayerGroup],
        *,
        num_pages: Sequence[int],
        num_host_pages: Sequence[int],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if not (dtype.is_floating_point or dtype == torch.int8):
            raise ValueError(f"a KV cache is stored in a floating-point dtype or in torch.int8, got {dtype}")
        self.page_size = page_size
        self.groups = tuple(
            CacheGroup(kind=group.kind, window=group.window, num_pages=pages, num_host_pages=host_pages)
            for group, pages, host_pages in zip(layer_groups, num_pages, num_host_pages, strict=True)
        )
        self._specs = tuple(specs)
        self._needed = sum(
            _bytes_per_page(self._specs[layer], page_size, dtype) * (group.num_pages + group.num_host_pages)
            for group, layers in zip(self.groups, layer_groups, strict=True)
            for layer in layers.layers
        )
        layers_made: dict[int, LayerPages | LayerStates] = {}
        self._device_tensors: list[list[Tensor]] = [[] for _ in self.groups]
        for index, (group, layers) in enumerate(zip(self.groups, layer_groups, strict=True)):
            layout = PageLayout(group.num_pages, page_size, windowed=group.window is not None)
            states = StateLayout(group.num_pages)
            for layer in layers.layers:
                made = self._make_layer(self._specs[layer], layout, states, index, dtype, device)
                layers_made[layer] = made
                self._device_tensors[index] += made.tensors
        self._layers = tuple(layers_made[layer] for layer in range(len(self._specs)))
        pinned = device.type == "cuda"
        self._host_tensors = [
            [
                self._allocate(
                    (group.num_host_pages, *tensor.shape[1:]), tensor.dtype, torch.device("cpu"), pinned=pinned
                )
                for tensor in tensors
            ]
            for group, tensors in zip(self.groups, self._device_tensors, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Size of the device's storage, in bytes."""
        return sum(tensor.nbytes for tensors in self._device_tensors for tensor in tensors)

    @property
    def host_nbytes(self) -> int:
        """Size of the host's storage, in bytes."""
        return sum(tensor.nbytes for tensors in self._host_tensors for tensor in tensors)

    def layer(self, index: int) -> LayerPages:
        """Keys and values of layer ``index``.

        Raises:
            ValueError: The layer keeps a state.
        """
        found = self._layers[index]
        if isinstance(found, LayerStates):
            raise ValueError(f"layer {index} keeps a state, not keys and values: ask for state({index})")  # noqa: TRY004 - the index is at fault, not its type
        return found

    def state(self, index: int) -> LayerStates:
        """The state of layer ``index``.

        Raises:
            ValueError: The layer keeps keys and values.
        """
        found = self._layers[index]
        if isinstance(found, LayerPages):
            raise ValueError(f"layer {index} keeps keys and values, not a state: ask for layer({index})")  # noqa: TRY004 - the same
        return found

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group`` in every layer of it, as if one after the other in this order.

        Raises:
            ValueError: There are not as many sources as targets, or a page is outside the group.
        """
        count = self.groups[group].num_pages
        _check_pages("sources", sources, "targets", targets, count, count)
        # What each target holds in the end is what one page held in the beginning, through any chain of copies.
        origin: dict[int, int] = {}
        for source, target in zip(sources, targets, strict=True):
            origin[target] = origin.get(source, source)
        moves = {target: source for target, source in origin.items() if target != source}
        if not moves:
            return
        for tensor in self._device_tensors[group]:
            taken = tensor.index_select(0, torch.tensor(list(moves.values()), device=tensor.device))
            tensor.index_copy_(0, torch.tensor(list(moves), device=tensor.device), taken)

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        """Copy ``pages`` of the device to ``host_pages`` of host memory, in order of the device's stream.

        Raises:
            ValueError: There are not as many pages as host pages, or a page is outside the group.
        """
        self._check_swap(group, pages, host_pages)
        for tensor, host in zip(self._device_tensors[group], self._host_tensors[group], strict=True):
            taken = tensor.index_select(0, torch.tensor(pages, dtype=torch.int64, device=tensor.device))
            for begin, end, first in _runs(host_pages):
                host[first : first + end - begin].copy_(taken[begin:end], non_blocking=True)

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        """Copy ``host_pages`` of host memory to ``pages`` of the device, in order of the device's stream.

        Raises:
            ValueError: There are not as many pages as host pages, or a page is outside the group.
        """
        self._check_swap(group, pages, host_pages)
        for tensor, host in zip(self._device_tensors[group], self._host_tensors[group], strict=True):
            taken = torch.empty(len(pages), *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
            for begin, end, first in _runs(host_pages):
                taken[begin:end].copy_(host[first : first + end - begin], non_blocking=True)
            tensor.index_copy_(0, torch.tensor(pages, dtype=torch.int64, device=tensor.device), taken)

    def _check_swap(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        found = self.groups[group]
        _check_pages("pages", pages, "host_pages", host_pages, found.num_pages, found.num_host_pages)

    def _make_layer(
        self,
        spec: LayerCacheSpec,
        layout: PageLayout,
        states: StateLayout,
        group: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> LayerPages | LayerStates:
        count = self.groups[group].num_pages
        if isinstance(spec, StateSpec):
            shapes = [(count, *shape) for shape in spec.shapes]
            tensors = tuple(self._allocate(shape, torch.float32, device) for shape in shapes)
            return LayerStates(tensors, layout=states, group=group)
        heads, size = (
            (1, spec.elements_per_token) if isinstance(spec, LatentSpec) else (spec.num_kv_heads, spec.head_dim)
        )
        keys = self._rows((count, self.page_size, heads, size), dtype, device)
        if isinstance(spec, LatentSpec):
            return LayerPages(keys, None, value_dim=spec.rank, layout=layout, group=group)
        values = self._rows((count, self.page_size, heads, size), dtype, device)
        return LayerPages(keys, values, value_dim=size, layout=layout, group=group)

    def _rows(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Rows:
        pages = self._allocate(shape, dtype, device)
        if dtype != torch.int8:
            return PlainRows(pages)
        return Int8Rows(pages, self._allocate((*shape[:-1], 1), torch.float32, device))

    def _allocate(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pinned: bool = False
    ) -> Tensor:
        try:
            # An inference tensor could not be written outside inference mode, so the mode of the maker must not matter.
            with torch.inference_mode(mode=False):
                return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise DoesNotFitError(
                f"a KV cache of {self._needed:,} bytes does not fit on {device}",
                hint="lower the context length or the number of sequences",
            ) from error


def _bytes_per_page(spec: LayerCacheSpec, page_size: int, dtype: torch.dtype) -> int:
    if isinstance(spec, StateSpec):
        return spec.elements * torch.float32.itemsize
    return token_bytes(spec, dtype) * page_size


def _check_pages(
    name: str, pages: Sequence[int], other_name: str, others: Sequence[int], count: int, other_count: int
) -> None:
    if len(pages) != len(others):
        raise ValueError(f"{len(pages)} {name} and {len(others)} {other_name} must be the same number")
    for kind, given, limit in ((name, pages, count), (other_name, others, other_count)):
        bad = next((page for page in given if not 0 <= page < limit), None)
        if bad is not None:
            raise ValueError(f"{kind}: page {bad} is outside the group's {limit} pages")


def _runs(pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of consecutive page numbers: the indices ``begin .. end - 1`` and the page at ``begin``."""
    begin = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] != pages[index - 1] + 1:
            yield begin, index, pages[begin]
            begin = index


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch.OutOfMemoryError is raised by accelerators; the CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
