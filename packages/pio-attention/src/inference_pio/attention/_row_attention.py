"""Attention of decoding rows over the pages of a cache on a CPU, piece by piece as planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.attention._layer_pages import LayerPages
from inference_pio.attention._row_plan import Limits, plan_rows

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.attention._row_plan import Piece, RowPlan
    from inference_pio.interfaces import AttentionSpec, LayerKVCache, RaggedBatch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LIMITS = Limits()


def find_plan(q: Tensor, cache: LayerKVCache, batch: RaggedBatch, spec: AttentionSpec) -> RowPlan | None:
    """How the decoding rows of this step are attended to; the same for all layers of a group that look alike.

    None where this module does not serve: other devices than a CPU, caches of others.
    """
    if not isinstance(cache, LayerPages) or q.device.type != "cpu" or q.dtype not in _DTYPES:
        return None
    in_place = cache.key_pages.dtype == q.dtype
    return cache.layout.remember(
        batch,
        (spec, q.dtype, in_place, cache.shared),
        lambda tables: plan_rows(
            batch,
            tables,
            spec,
            page_size=cache.page_size,
            token_bytes=spec.num_kv_heads * spec.head_dim * q.dtype.itemsize * (1 if cache.shared else 2),
            dtype=q.dtype,
            in_place=in_place,
            limits=_LIMITS,
        ),
    )


def attend_rows(q: Tensor, cache: LayerKVCache, plan: RowPlan, spec: AttentionSpec) -> Tensor:
    """The outputs of the plan's rows, (M, H, Dv).

    Args:
        q: Queries of the whole step (N, H, D).
        cache: Keys and values of this layer.
        plan: What :func:`find_plan` gave.
        spec: What to compute.
    """
    assert isinstance(cache, LayerPages)  # else there is no plan
    storage = tuple(_heads_first(pages.flatten(0, 1)) for pages in (cache.key_pages, cache.value_pages))
    outputs, log_sums = [], []
    for piece in plan.pieces:
        rows = _query_rows(q, piece, spec)
        if piece.slots is not None:
            begin, end = piece.slots
            keys = storage[0].narrow(2, begin, end - begin)
            values = keys if cache.shared else storage[1].narrow(2, begin, end - begin)
        else:
            keys, values = _copied(cache, piece, q.dtype)
        # The op behind scaled_dot_product_attention on a CPU, asked directly because it also returns the log-sums. It
        # wants values of the size of keys: a latent's keys serve as both, and what is too much is cut off.
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001 - no public name
            rows, keys, values, attn_mask=piece.mask, scale=spec.softmax_scale
        )
        outputs.append(_tokens_first(out[..., : spec.output_dim] if cache.shared else out, piece, spec))
        log_sums.append(_tokens_first(log_sum, piece, spec))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if plan.in_order:
        return joined
    if plan.absent is None:
        return joined.index_select(0, plan.take.flatten())
    return _merge(joined, torch.cat(log_sums), plan.take, plan.absent)


def _merge(outputs: Tensor, log_sums: Tensor, take: Tensor, absent: Tensor) -> Tensor:
    """Weigh each row's outputs by their share of the sum of exponentials."""
    shares = (log_sums[take] + absent).softmax(dim=1)  # (M, J, H)
    mixed = torch.einsum("mjh,mjhd->mhd", shares, outputs[take].to(shares.dtype))
    return mixed.to(outputs.dtype)


def _query_rows(q: Tensor, piece: Piece, spec: AttentionSpec) -> Tensor:
    """(sets, K, R*G, D): the (token, head of the group) pairs as the queries of each KV head."""
    sets, kv_heads, group = piece.sets, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
    if piece.first_row is not None:
        return q.narrow(0, piece.first_row, 1).view(1, kv_heads, group, spec.head_dim)
    rows = q.index_select(0, piece.rows).view(sets, -1, kv_heads, group, spec.head_dim)
    return rows.transpose(1, 2).reshape(sets, kv_heads, -1, spec.head_dim)


def _tokens_first(result: Tensor, piece: Piece, spec: AttentionSpec) -> Tensor:
    """(sets, K, R*G, ...) to (sets*R, H, ...)."""
    trailing = result.shape[3:]
    if piece.first_row is not None:
        return result.reshape(1, spec.num_heads, *trailing)
    group = spec.num_heads // spec.num_kv_heads
    split = result.reshape(piece.sets, spec.num_kv_heads, -1, group, *trailing)
    return split.transpose(1, 2).reshape(-1, spec.num_heads, *trailing)


def _copied(cache: LayerPages, piece: Piece, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values (sets, K, S, D) of a piece that is not read in place."""
    if piece.single_slots is not None:
        keys, values = cache.gather_slots(piece.single_slots)
    else:
        assert piece.pages is not None
        keys, values = cache.gather_pages(piece.pages, piece.page_size)
    if piece.unused is not None:
        # A mask does not hide a NaN: nothing times NaN is NaN. What nobody wrote, or another wrote, must not be there.
        keys.index_fill_(0, piece.unused, 0.0)
        if not cache.shared:
            values.index_fill_(0, piece.unused, 0.0)
    by_head = [
        rows.to(dtype).view(piece.sets, -1, *rows.shape[1:]).transpose(1, 2)
        for rows in ((keys,) if cache.shared else (keys, values))
    ]
    return by_head[0], by_head[-1]


def _heads_first(rows: Tensor) -> Tensor:
    return rows.transpose(0, 1).unsqueeze(0)
