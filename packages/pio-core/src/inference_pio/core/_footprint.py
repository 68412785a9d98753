"""What a model takes of memory once it is loaded, from its headers alone: for whoever must make room first."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from inference_pio.config import Settings
from inference_pio.config import cache_dir as default_cache_dir
from inference_pio.core._assembly import EngineOptions
from inference_pio.core._checkpoint import open_checkpoint
from inference_pio.core._executors import find_obstacle, finds_cuda, native_weights
from inference_pio.core._locate import locate_model
from inference_pio.core._memory import (
    HOST_BYTES,
    HOST_SHARE,
    PAGE_SIZE,
    available_memory,
    cache_budget,
    check_weights,
    plan_cache,
)
from inference_pio.core._registry import Registry
from inference_pio.interfaces import StateSpec, group_layers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inference_pio.core._checkpoint import Checkpoint
    from inference_pio.core._memory import CachePlan

_STATE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory that a model will take, beside what its steps compute with.

    Attributes:
        name: What the model is called.
        weight_bytes: Weights; those of the native executor as they are stored, which its tiles come near to.
        kv_cache_bytes: The cache; to be given to :class:`LLM` under this name.
        max_model_len: Tokens of one sequence with this cache; likewise.
    """

    name: str
    weight_bytes: int
    kv_cache_bytes: int
    max_model_len: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.kv_cache_bytes


def plan_footprint(
    model: str | Path,
    *,
    memory_bytes: int,
    kv_cache_bytes: int | None = None,
    executor: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int | None = None,
    attention: str = "auto",
    kv_cache: str = "auto",
    kv_cache_dtype: str = "auto",
    deterministic: bool = False,
    cache_dir: Path | None = None,
    ignore_unknown_keys: bool = False,
    hub_endpoint: str | None = None,
    download_progress: Callable[[int, int], None] | None = None,
) -> Footprint:
    """What :class:`LLM` will take for ``model`` within a bound: nothing is read but headers and config.

    A hub id that is not here yet is fetched, as :class:`LLM` would.

    Args:
        model: As in :class:`LLM`.
        memory_bytes: What weights and cache may take together.
        kv_cache_bytes: What the cache may take; None for half of what is left beside the weights, at most 4 GiB. It
            takes less where ``max_num_seqs`` sequences need less.
        executor: As in :class:`LLM`; so are the others.
        dtype: Of the weights.
        device: Where the model runs.
        max_model_len: Tokens of one sequence.
        max_num_seqs: Sequences that run at once.
        max_num_batched_tokens: Tokens of one step.
        attention: Name of the backend.
        kv_cache: Layout of the cache.
        kv_cache_dtype: Of keys and values.
        deterministic: Whether results may not depend on company.
        cache_dir: Where fetched models lie.
        ignore_unknown_keys: Accept unknown keys in the config.
        hub_endpoint: Address of the model hub.
        download_progress: Called with bytes fetched and in all.

    Raises:
        ModelNotFoundError: Nothing matches ``model``.
        DoesNotFitError: Weights and the cache of one sequence take more than there may be.
        PioError: The files are not sound, or no plugin serves them.
    """
    options = EngineOptions(
        executor=executor,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        attention=attention,
        kv_cache=kv_cache,
        kv_cache_dtype=kv_cache_dtype,
        kv_cache_bytes=kv_cache_bytes,
        deterministic=deterministic,
        ignore_unknown_keys=ignore_unknown_keys,
    )
    registry = Registry.discover()
    files = default_cache_dir(Settings()) if cache_dir is None else cache_dir
    located = locate_model(model, registry, cache_dir=files, endpoint=hub_endpoint, progress=download_progress)
    checkpoint = open_checkpoint(located, registry, ignore_unknown_keys=ignore_unknown_keys)
    sizes = _native_sizes if executor != "torch" and find_obstacle(checkpoint, options) is None else _torch_sizes
    weight_bytes, weights, kv_bytes, page_multiple = sizes(checkpoint, options)
    check_weights(checkpoint.name, weight_bytes, weights, memory_bytes)
    plan = plan_cache(
        checkpoint.shape,
        dtype_bytes=kv_bytes,
        budget=cache_budget(kv_cache_bytes, memory_bytes - weight_bytes, share=HOST_SHARE, most=HOST_BYTES),
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        max_step_tokens=options.step_tokens,
        contiguous=kv_cache == "contiguous",
        page_multiple=page_multiple,
    )
    return Footprint(
        name=checkpoint.name,
        weight_bytes=weight_bytes,
        kv_cache_bytes=_plan_bytes(checkpoint, plan, kv_bytes),
        max_model_len=plan.max_model_len,
    )


def free_memory(*, executor: str = "auto", device: str = "auto") -> int:
    """Bytes that models may still take where :class:`LLM` would put them.

    Of the machine, or what its control group leaves of it, or of an accelerator.

    Args:
        executor: As in :class:`LLM`.
        device: Likewise.

    Raises:
        PioError: The device is not there.
    """
    if executor == "native" or device == "cpu" or (device == "auto" and not finds_cuda()):
        return available_memory()
    from inference_pio.core.torch_executor import free_on

    return free_on(device)


def _native_sizes(checkpoint: Checkpoint, options: EngineOptions) -> tuple[int, str, float, int]:
    """Bytes of the weights, what they are called, bytes of an element of the cache, multiple of its pages."""
    from inference_pio.core.native_executor import KV_BYTES, KV_FORMATS, PAGE_TOKENS, lower, packed_bytes

    packed = packed_bytes(checkpoint, lower(checkpoint), native_weights(options))
    return packed, "tiles", KV_BYTES[KV_FORMATS[options.kv_cache_dtype]], PAGE_TOKENS


def _torch_sizes(checkpoint: Checkpoint, options: EngineOptions) -> tuple[int, str, float, int]:
    """As :func:`_native_sizes`."""
    from inference_pio.core.torch_executor import choose_dtypes, kv_bytes_per_element

    dtype, kv_dtype = choose_dtypes(checkpoint, options.dtype, options.kv_cache_dtype, options.device)
    nbytes = checkpoint.shape.num_parameters * dtype.itemsize
    return nbytes, str(dtype).removeprefix("torch."), kv_bytes_per_element(kv_dtype), PAGE_SIZE


def _plan_bytes(checkpoint: Checkpoint, plan: CachePlan, kv_bytes: float) -> int:
    specs = checkpoint.shape.cache_specs
    total = 0
    for group, pages in zip(group_layers(specs), plan.num_pages, strict=True):
        for layer in group.layers:
            spec = specs[layer]
            if isinstance(spec, StateSpec):
                total += pages * _STATE_BYTES * spec.elements
            else:
                total += pages * ceil(spec.elements_per_token * plan.page_size * kv_bytes)
    return total
