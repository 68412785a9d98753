"""Packed sequences: what every backend checks of its inputs, and how it walks them one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec


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
    expected = (sum(key_lens), spec.num_kv_heads, spec.head_dim)
    for name, tensor in (("keys", k), ("values", v)):
        if tensor.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} must have the dtype of the queries, {q.dtype}, got {tensor.dtype}")


def sequences(
    q: Tensor, k: Tensor, v: Tensor, query_lens: tuple[int, ...], key_lens: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Views of each sequence's queries (T, H, D), keys (S, K, D) and values (S, K, D)."""
    yield from zip(
        q.split_with_sizes(query_lens), k.split_with_sizes(key_lens), v.split_with_sizes(key_lens), strict=True
    )


def pack(outputs: list[Tensor], q: Tensor) -> Tensor:
    """Join the sequences' outputs; an empty batch gives an empty tensor like ``q``."""
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat(outputs) if outputs else torch.empty_like(q)
