"""From the memories of many sequences to the arrays that a sampler executes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inference_pio.interfaces import LogitEdits, SamplingBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference_pio.core._sampler_state import SamplerState


class SamplingRow(NamedTuple):
    """One token to be drawn.

    Attributes:
        row: Row of the step's logits.
        state: The sequence that it continues.
        ahead: Draft tokens that are taken to follow the sequence's text, before this one.
    """

    row: int
    state: SamplerState
    ahead: tuple[int, ...] = ()


def sampling_batch(
    rows: Sequence[SamplingRow], *, vocab_size: int, masks: NDArray[np.int32] | None = None
) -> SamplingBatch:
    """What a sampler needs to draw one token for each of ``rows``.

    Args:
        rows: R of them, in any order; several may be drawn from the same logits.
        vocab_size: V; tokens beyond it (placeholders of images in a prompt) have no logit, and so no penalty.
        masks: As in :class:`SamplingBatch`, by position in ``rows``.

    Raises:
        ValueError: ``masks`` of another shape than (R, ceil(V / 32)).
    """
    words = -(-vocab_size // 32)
    if masks is not None and masks.shape != (len(rows), words):
        raise ValueError(f"masks must have shape ({len(rows)}, {words}), got {masks.shape}")
    settings = np.array([row.state.settings for row in rows], dtype=np.float64).reshape(-1, 5)
    temperature, top_k, typical_p, top_p, min_p = settings.T
    edited = [(index, row) for index, row in enumerate(rows) if row.state.edits_logits]
    return SamplingBatch(
        rows=np.array([row.row for row in rows], dtype=np.int64),
        bias=_bias(edited, vocab_size),
        repetition=_repetition(edited, vocab_size),
        penalties=_penalties(edited, vocab_size),
        masks=masks,
        temperature=temperature.astype(np.float32),
        top_k=top_k.astype(np.int32),
        typical_p=typical_p.astype(np.float32),
        top_p=top_p.astype(np.float32),
        min_p=min_p.astype(np.float32),
        uniforms=np.array(
            [0.0 if row.state.greedy else row.state.uniform(len(row.ahead)) for row in rows], dtype=np.float64
        ),
    )


_Edited = list[tuple[int, SamplingRow]]
_Parts = list[tuple[int, "NDArray[np.int64]", "NDArray[np.float32]"]]


def _bias(edited: _Edited, vocab_size: int) -> LogitEdits | None:
    parts: _Parts = []
    for index, row in edited:
        edits = row.state.bias()
        if edits is not None:
            parts.append((index, *edits))
    return _joined(parts, vocab_size)


def _repetition(edited: _Edited, vocab_size: int) -> LogitEdits | None:
    parts: _Parts = []
    for index, row in edited:
        ids = row.state.repeated(row.ahead)
        if ids is not None:
            values = np.full(ids.size, row.state.params.repetition_penalty, dtype=np.float32)
            parts.append((index, ids, values))
    return _joined(parts, vocab_size)


def _penalties(edited: _Edited, vocab_size: int) -> LogitEdits | None:
    parts: _Parts = []
    for index, row in edited:
        edits = row.state.penalties(row.ahead)
        if edits is not None:
            parts.append((index, *edits))
    return _joined(parts, vocab_size)


def _joined(parts: _Parts, vocab_size: int) -> LogitEdits | None:
    """The edits of all rows, in order of rows; None if there are none."""
    if not parts:
        return None
    rows = np.repeat(
        np.array([index for index, _, _ in parts], dtype=np.int64), [token_ids.size for _, token_ids, _ in parts]
    )
    token_ids = np.concatenate([token_ids for _, token_ids, _ in parts])
    values = np.concatenate([values for _, _, values in parts])
    inside = (token_ids >= 0) & (token_ids < vocab_size)
    if not inside.all():
        rows, token_ids, values = rows[inside], token_ids[inside], values[inside]
    return LogitEdits(rows=rows, token_ids=token_ids, values=values) if rows.size else None
