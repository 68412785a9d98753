"""Checks of a step's arrays before native code reads through them: whatever is out of range is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference_pio.interfaces import GroupTables, StepBatch


def check_batch(
    batch: StepBatch, *, vocab_size: int, num_pages: tuple[int, ...], windows: tuple[int | None, ...], page_size: int
) -> None:
    """Refuse a batch that native code could not run over safely.

    Args:
        batch: The step.
        vocab_size: ``V``.
        num_pages: Pages of each group.
        windows: Per group, keys that its layers look back to at most; None for all.
        page_size: ``P``.

    Raises:
        ValueError: An array of another dtype, shape or layout than :class:`StepBatch` says, or a number in it that is
            out of range.
    """
    tokens, sequences = len(batch.token_ids), len(batch.seq_lens)
    _check_array("token_ids", batch.token_ids, np.int64, (tokens,))
    _check_array("positions", batch.positions, np.int64, (tokens,))
    _check_array("query_starts", batch.query_starts, np.int32, (sequences + 1,))
    _check_array("seq_lens", batch.seq_lens, np.int32, (sequences,))
    _check_array("logit_rows", batch.logit_rows, np.int64, (len(batch.logit_rows),))
    if batch.largest_wanted is not None:
        _check_array("largest_wanted", batch.largest_wanted, np.int32, (len(batch.logit_rows),))
    if len(batch.others) != len(num_pages) - 1:
        raise ValueError(f"the step has tables of {len(batch.others) + 1} groups, the cache has {len(num_pages)}")
    if tokens == 0:
        rows = len(batch.logit_rows) + (0 if batch.hidden_rows is None else len(batch.hidden_rows))
        if sequences or rows:
            raise ValueError(f"a step of no tokens has {sequences} sequences, and {rows} rows of it are wanted")
        return
    _check_range("token_ids", batch.token_ids, vocab_size)
    _check_range("logit_rows", batch.logit_rows, tokens)
    if batch.hidden_rows is not None:
        _check_array("hidden_rows", batch.hidden_rows, np.int64, (len(batch.hidden_rows),))
        _check_range("hidden_rows", batch.hidden_rows, tokens)
    past = _check_positions(batch, tokens, sequences)
    groups: tuple[StepBatch | GroupTables, ...] = (batch, *batch.others)
    for tables, pages, window in zip(groups, num_pages, windows, strict=True):
        _check_array("slot_mapping", tables.slot_mapping, np.int64, (tokens,))
        _check_array("block_tables", tables.block_tables, np.int32, (sequences, tables.block_tables.shape[-1]))
        _check_range("slot_mapping", tables.slot_mapping, pages * page_size)
        _check_tables(tables.block_tables, batch.seq_lens, past, pages, window, page_size)


def _check_array(name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else " with gaps"
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}{layout}")


def _check_range(name: str, array: NDArray[np.int64], end: int) -> None:
    # A negative number becomes a very large one, so one comparison finds both.
    if array.size and np.maximum.reduce(array.view(np.uint64)) >= end:
        wrong = array[(array < 0) | (array >= end)][0]
        raise ValueError(f"{name} must be in 0..{end - 1}, got {wrong}")


def _check_positions(batch: StepBatch, tokens: int, sequences: int) -> NDArray[np.int32]:
    """Positions must be the last ones of their sequences; tokens of each sequence before this step, (B,)."""
    starts, lengths = batch.query_starts, batch.seq_lens
    counts = starts[1:] - starts[:-1]
    if sequences == 0 or starts[0] != 0 or starts[-1] != tokens or np.minimum.reduce(counts) < 1:
        raise ValueError(f"query_starts must rise from 0 to the {tokens} tokens of the step, got {starts.tolist()}")
    past = lengths - counts
    if np.minimum.reduce(past) < 0:
        raise ValueError(f"sequences of {lengths.tolist()} tokens have {counts.tolist()} in this step")
    expected = past if tokens == sequences else np.arange(tokens) + np.repeat(past - starts[:-1], counts)
    if (batch.positions != expected).any():
        raise ValueError("positions must be the last of each sequence, in order")
    return past


def _check_tables(
    tables: NDArray[np.int32],
    lengths: NDArray[np.int32],
    past: NDArray[np.int32],
    pages: int,
    window: int | None,
    page_size: int,
) -> None:
    """Every page that holds a key which some query of the step sees must be one of the group's."""
    longest = int(np.maximum.reduce(lengths))
    if longest > tables.shape[1] * page_size:
        raise ValueError(f"block_tables of {tables.shape[1]} pages do not hold {longest} tokens")
    numbers = tables.view(np.uint32)  # -1 becomes a very large number
    if np.maximum.reduce(numbers, axis=None) < pages:
        return
    inside = numbers < pages
    columns = np.arange(tables.shape[1])
    needed = columns < (-(-lengths // page_size))[:, None]
    if window is not None:
        needed &= columns >= (np.maximum(past - window + 1, 0) // page_size)[:, None]
    wrong = needed & ~inside
    if wrong.any():
        sequence, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"block_tables: page {column} of sequence {sequence} is {tables[sequence, column]}, of {pages} pages"
        )
