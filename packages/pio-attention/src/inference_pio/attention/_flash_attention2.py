"""FlashAttention-2 (Dao 2023, arXiv:2307.08691) through the ``flash-attn`` distribution, for CUDA."""

from __future__ import annotations

from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, cast

import torch

from inference_pio.attention._packed import check_packed, check_queries
from inference_pio.attention._reach import reach
from inference_pio.interfaces import BrokenDependencyError, MissingDependencyError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec, LayerKVCache, RaggedBatch

_DTYPES = (torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 256


class FlashAttention2:
    """Attention by ``flash_attn.flash_attn_varlen_func``.

    Computes in float16 and bfloat16, with head dims up to 256 and pages of a multiple of 256 tokens.

    Raises:
        MissingDependencyError: ``flash-attn`` is not installed.
        BrokenDependencyError: It is installed, but cannot be imported.
        UnsupportedError: There is no CUDA device.
    """

    name = "flash-attn-2"
    page_size_multiple = 256

    def __init__(self) -> None:
        self._varlen = _load_varlen()
        if not torch.cuda.is_available():
            raise UnsupportedError(
                "the flash-attn-2 backend needs an NVIDIA GPU, and torch sees none",
                hint="use the sdpa backend on this machine",
            )

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
        """Attention of packed sequences; see ``AttentionBackend.attend``. A query that sees no key gets zeros.

        Raises:
            UnsupportedError: FlashAttention-2 has no kernel for the device, dtype or head dim.
        """
        check_packed(q, k, v, spec, query_lens, key_lens)
        _check_kernel(q, spec)
        if q.shape[0] == 0 or k.shape[0] == 0:
            return torch.zeros_like(q)
        return self._call(q, k, v, spec, query_lens, key_lens, _starts(query_lens, q.device), None)

    def attend_cached(self, q: Tensor, cache: LayerKVCache, batch: RaggedBatch, spec: AttentionSpec) -> Tensor:
        """Attention over the cache, read in place through the block tables; see ``AttentionBackend.attend_cached``.

        Raises:
            UnsupportedError: FlashAttention-2 has no kernel for the device, dtype, head dim or page size.
        """
        check_queries(q, spec, batch.query_lens)
        _check_kernel(q, spec)
        _check_pages(q, cache)
        if q.shape[0] == 0:
            return torch.zeros_like(q)
        tables = batch.block_tables.clamp_min(0)  # -1 marks unused entries; the kernel reads none, but may address them
        keys, values = cache.key_pages, cache.value_pages
        return self._call(q, keys, values, spec, batch.query_lens, batch.seq_lens, batch.query_starts, tables)

    def _call(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        query_lens: tuple[int, ...],
        key_lens: tuple[int, ...],
        query_starts: Tensor,
        block_table: Tensor | None,
    ) -> Tensor:
        return self._varlen(
            q,
            k,
            v,
            cu_seqlens_q=query_starts,
            cu_seqlens_k=_starts(key_lens, q.device),
            max_seqlen_q=max(query_lens),
            max_seqlen_k=max(key_lens),
            softmax_scale=spec.softmax_scale,
            causal=spec.causal,
            window_size=tuple(reach(spec)) if spec.window is not None else (-1, -1),
            block_table=block_table,
        )


def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _load_varlen() -> Callable[..., Tensor]:
    try:
        module = import_module("flash_attn")
        varlen = module.flash_attn_varlen_func
    except ModuleNotFoundError as error:
        if error.name != "flash_attn":
            raise _broken(error) from error
        raise MissingDependencyError(
            "the flash-attn-2 backend needs the distribution flash-attn, which is not installed",
            hint='with an NVIDIA GPU and CUDA toolkit: pip install --no-build-isolation "pio-attention[flash-attn]"',
        ) from error
    except (ImportError, OSError, AttributeError) as error:  # OSError: a shared library that does not load
        raise _broken(error) from error
    return cast("Callable[..., Tensor]", varlen)


def _broken(error: Exception) -> BrokenDependencyError:
    reason = " ".join(str(error).split())
    return BrokenDependencyError(
        f"flash-attn is installed but cannot be used: {reason}",
        hint="it must be built for this torch and CUDA: "
        "pip install --force-reinstall --no-deps --no-build-isolation flash-attn",
    )


def _check_kernel(q: Tensor, spec: AttentionSpec) -> None:
    _check_device(q)
    if q.dtype not in _DTYPES:
        raise UnsupportedError(
            f"flash-attn-2 computes in float16 or bfloat16, not {q.dtype}", hint="use sdpa, or a 16-bit dtype"
        )
    if spec.head_dim > _MAX_HEAD_DIM or spec.head_dim % 8 != 0:
        raise UnsupportedError(
            f"flash-attn-2 needs a head dim that is a multiple of 8 up to {_MAX_HEAD_DIM}, got {spec.head_dim}",
            hint="use sdpa",
        )
    if spec.output_dim != spec.head_dim:
        raise UnsupportedError(
            f"flash-attn-2 needs values of the head dim {spec.head_dim}, got {spec.output_dim}", hint="use sdpa"
        )


def _check_device(q: Tensor) -> None:
    if q.device.type != "cuda":
        raise UnsupportedError(f"flash-attn-2 computes on CUDA devices, not on {q.device}", hint="use sdpa there")


def _check_pages(q: Tensor, cache: LayerKVCache) -> None:
    multiple = FlashAttention2.page_size_multiple
    if cache.page_size % multiple != 0:
        raise UnsupportedError(
            f"flash-attn-2 needs a page size that is a multiple of {multiple} tokens, got {cache.page_size}",
            hint=f"make the cache with page_size={multiple}, or use sdpa",
        )
    if cache.key_pages.dtype != q.dtype:
        raise UnsupportedError(
            f"flash-attn-2 needs the cache in the dtype of the queries, {q.dtype}, got {cache.key_pages.dtype}",
            hint="make the cache in that dtype, or use sdpa",
        )
