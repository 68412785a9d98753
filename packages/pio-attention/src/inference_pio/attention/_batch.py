"""The layout of a ragged batch on a device, from the engine's NumPy step or from plain Python lists."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference_pio.interfaces import RaggedBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import GroupTables, StepBatch


def ragged_batch(step: StepBatch, device: torch.device | str = "cpu") -> RaggedBatch:
    """Bring the layout of an engine's step to ``device``.

    Args:
        step: The step; its arrays must not change while the batch is in use (on CPU they are shared, not copied).
        device: Where keys and values live.

    Returns:
        The same layout with tensors on ``device``, as each group of layers sees it.
    """
    query_lens = tuple(np.diff(step.query_starts).tolist())
    seq_lens = tuple(step.seq_lens.tolist())
    query_starts = torch.from_numpy(step.query_starts).to(device)

    def view(tables: StepBatch | GroupTables, others: tuple[RaggedBatch, ...] = ()) -> RaggedBatch:
        return RaggedBatch(
            query_lens=query_lens,
            seq_lens=seq_lens,
            query_starts=query_starts,
            block_tables=torch.from_numpy(tables.block_tables).to(device),
            slot_mapping=torch.from_numpy(tables.slot_mapping).to(device),
            others=others,
        )

    return view(step, tuple(view(tables) for tables in step.others))


def make_batch(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]] | None = None,
    *,
    page_size: int,
    device: torch.device | str = "cpu",
) -> RaggedBatch:
    """Lay out a ragged batch without an engine.

    Args:
        query_lens: New tokens of each sequence in this step, each at least 1.
        seq_lens: Tokens of each sequence after this step, the new ones included.
        block_tables: Page numbers of each sequence in order, at least ``ceil(seq_len / page_size)`` of them. None gives
            sequence ``b`` the one page ``b``: the layout of a ``ContiguousKVCache``.
        page_size: ``P`` of the cache, in tokens.
        device: Where keys and values live.

    Returns:
        The layout, with the slots of each sequence's last ``query_lens[b]`` positions.

    Raises:
        ValueError: The arguments contradict each other.
    """
    tables = (
        [[index] for index in range(len(seq_lens))] if block_tables is None else [list(row) for row in block_tables]
    )
    if page_size < 1:
        raise ValueError(f"page_size must be at least 1, got {page_size}")
    if not len(query_lens) == len(seq_lens) == len(tables):
        counts = f"{len(query_lens)} query_lens, {len(seq_lens)} seq_lens and {len(tables)} block_tables"
        raise ValueError(f"{counts} must be of the same number of sequences")
    slots = [
        _slots(index, query_len, seq_len, table, page_size)
        for index, (query_len, seq_len, table) in enumerate(zip(query_lens, seq_lens, tables, strict=True))
    ]
    padded = np.full((len(tables), max(map(len, tables), default=0)), -1, dtype=np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    slot_mapping = np.concatenate(slots) if slots else np.empty(0, dtype=np.int64)
    return RaggedBatch(
        query_lens=tuple(query_lens),
        seq_lens=tuple(seq_lens),
        query_starts=torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32, device=device),
        block_tables=torch.from_numpy(padded).to(device),
        slot_mapping=torch.from_numpy(slot_mapping).to(device),
    )


def _slots(index: int, query_len: int, seq_len: int, table: list[int], page_size: int) -> NDArray[np.int64]:
    if not 1 <= query_len <= seq_len:
        raise ValueError(f"sequence {index}: query length {query_len} must be between 1 and its length {seq_len}")
    if len(table) * page_size < seq_len:
        raise ValueError(f"sequence {index}: {len(table)} pages of {page_size} do not hold {seq_len} tokens")
    if min(table) < 0:
        raise ValueError(f"sequence {index}: page numbers must not be negative, got {min(table)}")
    positions = np.arange(seq_len - query_len, seq_len, dtype=np.int64)
    return np.asarray(table, dtype=np.int64)[positions // page_size] * page_size + positions % page_size
