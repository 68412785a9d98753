"""Paged attention by a Triton kernel, for CUDA: prefill, chunks after a prefix hit and decode in one call."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from inference_pio.attention._packed import check_packed, check_queries, no_output
from inference_pio.interfaces import BrokenDependencyError, MissingDependencyError, UnsupportedError

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec, LayerKVCache, RaggedBatch

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LOG2_E = 1.4426950408889634
# Rows of a tile when there are many queries; decode takes the fewest that tensor cores multiply.
_PREFILL_ROWS = 64
_MIN_ROWS = 16
_MAX_BLOCK_KEYS = 64
# Each share of the keys should be worth a program's start.
_MIN_KEYS_PER_SHARE = 512
_MAX_SHARES = 16
# Programs beyond which a GPU is busy without dealing out the keys.
_ENOUGH_PROGRAMS = 256


class TritonAttention:
    """FlashAttention-2 over block tables, read in place, as a Triton kernel; see ``_triton_kernel`` for the algorithm.

    Any page size that is a power of two from 16 on, any head dim, float32, float16 and bfloat16. Pages that a window
    has left behind may be -1 in the table: they are not read.

    Raises:
        MissingDependencyError: ``triton`` is not installed.
        BrokenDependencyError: It is installed, but cannot be imported.
        UnsupportedError: There is no CUDA device, and Triton's interpreter is off.
    """

    name = "triton"
    page_size_multiple = 16

    def __init__(self) -> None:
        self._interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not self._interpreted and not torch.cuda.is_available():
            raise UnsupportedError(
                "the triton backend needs an NVIDIA GPU, and torch sees none",
                hint="use the sdpa backend on this machine, or TRITON_INTERPRET=1 to try the kernel slowly on the CPU",
            )
        self._kernels = _load_kernels()

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        *,
        query_lens: tuple[int, ...],
        key_lens: tuple[int, ...],
    ) -> Tensor:
        """Attention of packed sequences; see ``AttentionBackend.attend``. Copies the keys into pages first.

        Raises:
            UnsupportedError: The kernel has no form for the device or dtype.
        """
        check_packed(q, k, v, spec, query_lens, key_lens)
        self._check(q)
        if q.shape[0] == 0 or k.shape[0] == 0:
            return no_output(q, spec)
        size, width = self.page_size_multiple, max(-(-length // self.page_size_multiple) for length in key_lens)
        counts = [-(-length // size) for length in key_lens]
        tables = torch.full((len(key_lens), width), -1, dtype=torch.int32)
        slots, first = [], 0
        for row, (count, length) in enumerate(zip(counts, key_lens, strict=True)):
            tables[row, :count] = torch.arange(first, first + count, dtype=torch.int32)
            slots.append(torch.arange(first * size, first * size + length))
            first += count
        rows = torch.cat(slots).to(q.device)
        pages = []
        for packed in (k, v):
            stored = packed.new_zeros(first * size, *packed.shape[1:])
            pages.append(stored.index_copy_(0, rows, packed).view(first, size, *packed.shape[1:]))
        return self._run(q, pages[0], pages[1], tables.to(q.device), spec, query_lens, key_lens)

    def attend_cached(self, q: Tensor, cache: LayerKVCache, batch: RaggedBatch, spec: AttentionSpec) -> Tensor:
        """Attention over the cache, read in place through the block tables; see ``AttentionBackend.attend_cached``.

        Raises:
            UnsupportedError: The kernel has no form for the device, dtype or page size.
        """
        check_queries(q, spec, batch.query_lens)
        self._check(q)
        _check_pages(cache)
        if q.shape[0] == 0:
            return no_output(q, spec)
        pages = cache.key_pages, cache.value_pages
        return self._run(q, *pages, batch.block_tables, spec, batch.query_lens, batch.seq_lens)

    def _check(self, q: Tensor) -> None:
        if q.device.type != ("cpu" if self._interpreted else "cuda"):
            where = "the CPU, where Triton interprets" if self._interpreted else "CUDA devices"
            raise UnsupportedError(f"the triton backend computes on {where}, not on {q.device}", hint="use sdpa there")
        if q.dtype not in _DTYPES:
            raise UnsupportedError(
                f"the triton backend computes in float32, float16 or bfloat16, not {q.dtype}", hint="use sdpa"
            )

    def _run(
        self,
        q: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        tables: Tensor,
        spec: AttentionSpec,
        query_lens: tuple[int, ...],
        key_lens: tuple[int, ...],
    ) -> Tensor:
        """Lay the tiles out, launch, and join the shares where the keys were dealt out."""
        group, page_size = spec.num_heads // spec.num_kv_heads, key_pages.shape[1]
        queries = q if q.stride(2) == 1 else q.contiguous()
        rows = _tile_rows(group, max(query_lens))
        tokens = rows // group
        tiles = [(seq, first) for seq, count in enumerate(query_lens) for first in range(0, count, tokens)]
        starts = [0, *torch.tensor(query_lens).cumsum(0).tolist()]
        # One transfer for all the integers of the launch.
        flat = [*starts, *key_lens, *(seq for seq, _ in tiles), *(first for _, first in tiles)]
        sizes = (len(starts), len(key_lens), len(tiles), len(tiles))
        launch = torch.tensor(flat, dtype=torch.int32).to(q.device).split_with_sizes(sizes)
        shares = _num_shares(len(tiles) * spec.num_kv_heads, _longest_span(spec, query_lens, key_lens, tokens))
        out = no_output(queries, spec)
        partial = out if shares == 1 else out.new_empty(shares, *out.shape, dtype=torch.float32)
        lse = out.new_empty(partial.shape[:-1], dtype=torch.float32)
        block_values = _power_of_two(spec.output_dim)
        self._kernels.paged_attention[(len(tiles), spec.num_kv_heads, shares)](
            queries,
            key_pages,
            value_pages,
            partial,
            lse,
            tables,
            *launch,
            spec.softmax_scale * _LOG2_E,
            spec.window or 0,
            queries.shape[0],
            *queries.stride()[:2],
            *key_pages.stride()[:3],
            *value_pages.stride()[:3],
            tables.stride(0),
            NUM_HEADS=spec.num_heads,
            GROUP=group,
            HEAD_DIM=spec.head_dim,
            VALUE_DIM=spec.output_dim,
            PAGE_SIZE=page_size,
            CAUSAL=spec.causal,
            WINDOWED=spec.window is not None,
            SHARES=shares,
            TILE_TOKENS=tokens,
            ROWS=rows,
            BLOCK_KEYS=min(page_size, _MAX_BLOCK_KEYS),
            BLOCK_D=_power_of_two(spec.head_dim),
            BLOCK_DV=block_values,
            UPCAST=self._interpreted and q.dtype is torch.bfloat16,
        )
        if shares > 1:
            self._kernels.join_shares[(out.shape[0] * out.shape[1],)](
                partial,
                lse,
                out,
                out.shape[0] * out.shape[1],
                VALUE_DIM=spec.output_dim,
                SHARES=shares,
                BLOCK_DV=block_values,
            )
        return out


def _tile_rows(group: int, longest: int) -> int:
    """Rows of a tile: a power of two that holds at least one token's group."""
    wanted = _PREFILL_ROWS if longest * group > _MIN_ROWS else _MIN_ROWS
    return max(wanted, _power_of_two(group))


def _longest_span(spec: AttentionSpec, query_lens: tuple[int, ...], key_lens: tuple[int, ...], tile_tokens: int) -> int:
    """Keys that the tile with the most keys reads."""
    if spec.window is None:
        return max(key_lens)
    reach = spec.window if spec.causal else 2 * spec.window - 1
    return min(max(key_lens), reach + min(tile_tokens, max(query_lens)) - 1)


def _num_shares(programs: int, span: int) -> int:
    """Into how many shares the keys are dealt out: as many as keep a GPU busy and are worth it, a power of two."""
    shares = 1
    while shares < _MAX_SHARES and programs * shares < _ENOUGH_PROGRAMS and span >= 2 * shares * _MIN_KEYS_PER_SHARE:
        shares *= 2
    return shares


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size`` and 16, the least that a tile's product takes."""
    return max(_MIN_ROWS, 1 << (size - 1).bit_length())


def _check_pages(cache: LayerKVCache) -> None:
    size = cache.page_size
    if size < _MIN_ROWS or size & (size - 1):
        raise UnsupportedError(
            f"the triton backend needs a page size that is a power of two from {_MIN_ROWS} on, got {size}",
            hint="make the cache with page_size=16, or use sdpa",
        )
    if cache.key_pages.dtype not in _DTYPES:
        raise UnsupportedError(
            f"the triton backend reads caches in float32, float16 or bfloat16, not {cache.key_pages.dtype}",
            hint="make the cache in one of those, or use sdpa",
        )


def _load_kernels() -> ModuleType:
    try:
        import_module("triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise _broken(error) from error
        raise MissingDependencyError(
            "the triton backend needs the distribution triton, which is not installed",
            hint="pip install triton, or install PyTorch for CUDA, which brings it",
        ) from error
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        raise _broken(error) from error
    return import_module("inference_pio.attention._triton_kernel")


def _broken(error: Exception) -> BrokenDependencyError:
    reason = " ".join(str(error).split())
    return BrokenDependencyError(
        f"triton is installed but cannot be used: {reason}", hint="reinstall it: pip install --force-reinstall triton"
    )
