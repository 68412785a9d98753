"""Packed sequences: what every backend checks of its inputs, and how it walks them one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec, RaggedBatch


def check_queries(q: Tensor, spec: AttentionSpec, query_lens: tuple[int, ...]) -> None:
    """Check ``q`` against the spec and the lengths.

    Raises:
        ValueError: ``q`` is not (sum of query_lens, H, D).
    """
    if q.shape != (sum(query_lens), spec.num_heads, spec.head_dim):
        expected = (sum(query_lens), spec.num_heads, spec.head_dim)
        raise ValueError(f"queries must have shape {expected}, got {tuple(q.shape)}")


def check_packed(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, query_lens: tuple[int, ...], key_lens: tuple[int, ...]
) -> None:
    """Check packed queries, keys and values against the spec, the lengths and each other.

    Raises:
        ValueError: A shape, a dtype or the number of sequences does not fit.
    """
    check_queries(q, spec, query_lens)
    if len(query_lens) != len(key_lens):
        raise ValueError(f"query_lens has {len(query_lens)} sequences, key_lens has {len(key_lens)}")
    for name, tensor, size in (("keys", k, spec.head_dim), ("values", v, spec.output_dim)):
        expected = (sum(key_lens), spec.num_kv_heads, size)
        if tensor.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} must have the dtype of the queries, {q.dtype}, got {tensor.dtype}")


def sequences(
    q: Tensor, k: Tensor, v: Tensor, query_lens: tuple[int, ...], key_lens: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Views of each sequence's queries (T, H, D), keys (S, K, D) and values (S, K, Dv)."""
    yield from zip(
        q.split_with_sizes(query_lens), k.split_with_sizes(key_lens), v.split_with_sizes(key_lens), strict=True
    )


def first_visible(batch: RaggedBatch, index: int, spec: AttentionSpec) -> int:
    """The first position of sequence ``index`` that one of its queries in this step sees."""
    if spec.window is None:
        return 0
    return max(0, batch.seq_lens[index] - batch.query_lens[index] - spec.window + 1)


def no_output(q: Tensor, spec: AttentionSpec) -> Tensor:
    """Zeros for each of the queries ``q`` (N, H, D): (N, H, Dv)."""
    return q.new_zeros(*q.shape[:-1], spec.output_dim)


def pack(outputs: list[Tensor], q: Tensor, spec: AttentionSpec) -> Tensor:
    """Join the sequences' outputs (T, H, Dv); an empty batch gives an empty tensor."""
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat(outputs) if outputs else no_output(q, spec)
