"""How much memory there is, and how much of it the cache may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from inference_pio.cache import plan_groups
from inference_pio.interfaces import DoesNotFitError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.interfaces import CacheGroup, ModelShape

PAGE_SIZE = 16
HOST_SHARE = 0.5
"""Share of the host memory left beside the weights that the cache may take, unless more is asked for."""
HOST_BYTES = 4 * 2**30
"""What it takes of the host at most, unless more is asked for: the rest of the machine is not ours."""
DEVICE_SHARE = 0.9
"""Share of an accelerator's memory left beside the weights that the cache may take; the rest is for activations."""

_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The size of a cache.

    Attributes:
        num_pages: Pages by group of layers.
        page_size: Tokens per page.
        max_model_len: Tokens that one sequence may have.
        num_host_pages: Pages in host memory by group of layers.
    """

    num_pages: tuple[int, ...]
    page_size: int
    max_model_len: int
    num_host_pages: tuple[int, ...]


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has, or what its control group leaves it."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in _CGROUP_FILES:
        limit, usage = _read_integer(limit_file), _read_integer(usage_file)
        if limit is not None and usage is not None:
            available = min(available, max(0, limit - usage))
    return available


def check_weights(name: str, nbytes: int, dtype: str, available: int) -> None:
    """Refuse weights that are larger than the memory.

    Raises:
        DoesNotFitError: They are.
    """
    if nbytes > available:
        raise DoesNotFitError(
            f"the weights of {name!r} need {_gib(nbytes)} in {dtype}, and {_gib(available)} are available",
            hint="take a smaller model or a narrower dtype, or free memory",
        )


def cache_budget(asked: int | None, free: int, *, share: float, most: int | None = None) -> int:
    """Bytes that the cache may take of the ``free`` ones beside the weights: ``asked``, else a share of them.

    Args:
        asked: What the user allows, or None.
        free: Bytes left beside the weights.
        share: Of ``free``, where nothing is asked for.
        most: Bound on that share; None for none.

    Raises:
        DoesNotFitError: More is asked for than is free.
    """
    if asked is None:
        budget = int(free * share)
        return budget if most is None else min(budget, most)
    if asked > free:
        raise DoesNotFitError(
            f"a cache of {_gib(asked)} is asked for, and {_gib(free)} are free beside the weights",
            hint="lower kv_cache_bytes",
        )
    return asked


def plan_cache(
    shape: ModelShape,
    *,
    dtype_bytes: float,
    budget: int,
    max_num_seqs: int,
    max_model_len: int | None,
    max_step_tokens: int,
    contiguous: bool = False,
    page_multiple: int = 1,
    host_budget: int = 0,
) -> CachePlan:
    """The cache that serves ``max_num_seqs`` sequences of ``max_model_len`` tokens, or as much of it as fits.

    Args:
        shape: The model.
        dtype_bytes: Bytes per element of keys and values.
        budget: Bytes that the cache may take.
        max_num_seqs: Sequences that run at once.
        max_model_len: Tokens per sequence as asked for, or None for the model's context or what fits.
        max_step_tokens: Tokens that one step reads at most.
        contiguous: One page per sequence instead of many small ones.
        page_multiple: The page size is a multiple of this many tokens.
        host_budget: Bytes of host memory for pages moved out of the device.

    Raises:
        DoesNotFitError: Not even one sequence of the length asked for fits.
        InvalidRequestError: ``max_model_len`` is beyond the model's context.
    """
    if max_model_len is not None and not 1 < max_model_len <= shape.max_position:
        raise InvalidRequestError(
            f"max_model_len must be between 2 and the model's context of {shape.max_position}, got {max_model_len}"
        )

    def fit(length: int, page_size: int, sequences: int) -> tuple[CacheGroup, ...]:
        return plan_groups(
            shape.cache_specs,
            budget_bytes=budget,
            dtype_bytes=dtype_bytes,
            page_size=page_size,
            max_num_seqs=sequences,
            max_model_len=length,
            max_step_tokens=max_step_tokens,
            host_budget_bytes=host_budget,
        )

    page_size = _round_up(PAGE_SIZE, page_multiple)
    length = max_model_len or shape.max_position
    if max_model_len is None:
        length = _longest(length, page_size, lambda tokens: fit(tokens, page_size, 1))
    if contiguous:
        page_size = _round_up(length, page_multiple)
    groups = fit(length, page_size, max_num_seqs)
    return CachePlan(
        tuple(group.num_pages for group in groups),
        page_size,
        length,
        tuple(group.num_host_pages for group in groups),
    )


def _longest(length: int, page_size: int, fit: Callable[[int], object]) -> int:
    """The largest number of tokens up to ``length`` that fits: all of it, or whole pages.

    Raises:
        DoesNotFitError: Not even a page does.
    """
    try:
        fit(length)
    except DoesNotFitError:
        fit(page_size)  # its error says what is missing
    else:
        return length
    low, high = 1, length // page_size + 1  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            fit(middle * page_size)
        except DoesNotFitError:
            high = middle
        else:
            low = middle
    return low * page_size


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _read_integer(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None  # no such control group on this system
    return int(text) if text.isdigit() else None  # "max" means no limit


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
