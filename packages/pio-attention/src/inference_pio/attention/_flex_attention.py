"""PyTorch's FlexAttention: the ragged batch as one sequence, in which each query sees an interval of the keys."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from inference_pio.attention._packed import check_packed, check_queries, first_visible, no_output
from inference_pio.attention._reach import reach

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from inference_pio.interfaces import AttentionSpec, LayerKVCache, RaggedBatch


class FlexAttention:
    """Attention by ``torch.nn.attention.flex_attention`` with a block mask.

    Args:
        compile: Generate a fused kernel with ``torch.compile``: half a minute at the first call on a CPU, then blocks
            that no query sees cost nothing. Without it the same mathematics runs unfused and holds all scores
            (H, Nq, Nk) of the batch in memory: for short batches and for checking. Both form a bool mask (Nq, Nk) on
            the way to the block mask.
    """

    page_size_multiple = 1

    def __init__(self, *, compile: bool = False) -> None:  # noqa: A002 - torch's own name for it
        from torch.nn.attention.flex_attention import flex_attention

        self.name = "flex-compiled" if compile else "flex"
        self._attention: Callable[..., Tensor] = torch.compile(flex_attention) if compile else _eager

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
        """Attention of packed sequences; see ``AttentionBackend.attend``. A query that sees no key gets zeros."""
        check_packed(q, k, v, spec, query_lens, key_lens)
        if q.shape[0] == 0 or k.shape[0] == 0:
            return no_output(q, spec)
        from torch.nn.attention.flex_attention import create_block_mask

        visible = _interval_mask(*_visible_intervals(query_lens, key_lens, spec, q.device))
        mask = create_block_mask(visible, None, None, q.shape[0], k.shape[0], device=str(q.device))
        queries, keys, values = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
        grouped = spec.num_heads != spec.num_kv_heads
        out = self._attention(queries, keys, values, block_mask=mask, scale=spec.softmax_scale, enable_gqa=grouped)
        return out.squeeze(0).transpose(0, 1).contiguous()

    def attend_cached(self, q: Tensor, cache: LayerKVCache, batch: RaggedBatch, spec: AttentionSpec) -> Tensor:
        """Attention over the cache; see ``AttentionBackend.attend_cached``. Copies the keys of several sequences."""
        check_queries(q, spec, batch.query_lens)
        if not batch.query_lens:
            return no_output(q, spec)
        starts = [first_visible(batch, index, spec) for index in range(len(batch.seq_lens))]
        keys, values = zip(*(cache.read(batch, index, start) for index, start in enumerate(starts)), strict=True)
        key_lens = tuple(length - start for length, start in zip(batch.seq_lens, starts, strict=True))
        k, v = ((parts[0] if len(parts) == 1 else torch.cat(parts)).to(q.dtype) for parts in (keys, values))
        return self.attend(q, k, v, spec, query_lens=batch.query_lens, key_lens=key_lens)


def compiled_flex_attention() -> FlexAttention:
    """What the name ``"flex-compiled"`` makes."""
    return FlexAttention(compile=True)


def _visible_intervals(
    query_lens: tuple[int, ...], key_lens: tuple[int, ...], spec: AttentionSpec, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The packed keys that each packed query sees: indices ``first[i] .. last[i] - 1``, int64 (Nq,) both."""
    limits = reach(spec)
    first, last, start = [], [], 0
    for num_queries, num_keys in zip(query_lens, key_lens, strict=True):
        position = torch.arange(num_keys - num_queries, num_keys)
        low = torch.zeros_like(position) if limits.back < 0 else position - limits.back
        high = torch.full_like(position, num_keys) if limits.ahead < 0 else position + limits.ahead + 1
        first.append(low.clamp(0, num_keys) + start)
        last.append(high.clamp(0, num_keys) + start)
        start += num_keys
    return torch.cat(first).to(device), torch.cat(last).to(device)


def _interval_mask(first: Tensor, last: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask function for these intervals."""

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= first[query]) & (key < last[query])

    return mask


def _eager(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, scale: float, enable_gqa: bool) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # Called outside torch.compile, flex_attention still traces itself, seconds at first and again for new dtypes until
    # a limit is hit; the stance makes it plain eager. Its warning says what the class's docstring says.
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(q, k, v, block_mask=block_mask, scale=scale, enable_gqa=enable_gqa)
