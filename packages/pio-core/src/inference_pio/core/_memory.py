"""How much memory there is, and how much of it the cache may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from inference_pio.interfaces import DoesNotFitError, InvalidRequestError

if TYPE_CHECKING:
    from inference_pio.interfaces import ModelShape

PAGE_SIZE = 16
CACHE_SHARE = 0.5
"""Share of the memory left beside the weights that an unasked-for cache may take."""

_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The size of a cache.

    Attributes:
        num_pages: Pages per layer.
        page_size: Tokens per page.
        max_model_len: Tokens that one sequence may have.
        nbytes: Size of all layers together.
    """

    num_pages: int
    page_size: int
    max_model_len: int
    nbytes: int


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


def plan_cache(
    shape: ModelShape,
    *,
    dtype_bytes: int,
    available: int,
    max_num_seqs: int,
    max_model_len: int | None,
    contiguous: bool,
    page_multiple: int = 1,
) -> CachePlan:
    """The cache that serves ``max_num_seqs`` sequences of ``max_model_len`` tokens, or as much of it as fits.

    Args:
        shape: The model.
        dtype_bytes: Bytes per element of the cache.
        available: Bytes left beside the weights.
        max_num_seqs: Sequences that run at once.
        max_model_len: Tokens per sequence as asked for, or None for the model's context or what fits.
        contiguous: One page per sequence instead of many small ones.
        page_multiple: The page size is a multiple of this many tokens.

    Raises:
        DoesNotFitError: Not even one sequence of the length asked for fits.
        InvalidRequestError: ``max_model_len`` is beyond the model's context.
    """
    if max_model_len is not None and not 1 < max_model_len <= shape.max_position:
        raise InvalidRequestError(
            f"max_model_len must be between 2 and the model's context of {shape.max_position}, got {max_model_len}"
        )
    page_size = -(-PAGE_SIZE // page_multiple) * page_multiple
    per_token = shape.kv_elements_per_token * dtype_bytes
    length = max_model_len or shape.max_position
    capacity = int(available * CACHE_SHARE) // per_token
    if capacity < length:
        if max_model_len is not None or capacity < page_size:
            raise DoesNotFitError(
                f"a context of {length} tokens needs {_gib(length * per_token)} of cache, and "
                f"{_gib(int(available * CACHE_SHARE))} can be given to it",
                hint="lower max_model_len or take a smaller model",
            )
        length = capacity // page_size * page_size
    if contiguous:
        page = -(-length // page_multiple) * page_multiple
        sequences = max(1, min(max_num_seqs, capacity // page))
        return CachePlan(sequences, page, length, sequences * page * per_token)
    pages_per_sequence = -(-length // page_size)
    pages = max(pages_per_sequence, min(max_num_seqs * pages_per_sequence, capacity // page_size))
    return CachePlan(pages, page_size, length, pages * page_size * per_token)


def _read_integer(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None  # no such control group on this system
    return int(text) if text.isdigit() else None  # "max" means no limit


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
