"""A plan laid out as one ragged batch, and what each row of its logits is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import GroupTables, StepBatch

if TYPE_CHECKING:
    from collections.abc import Sequence as Many

    from numpy.typing import NDArray

    from inference_pio.core._scheduler import Scheduled
    from inference_pio.core._sequence import Sequence
    from inference_pio.interfaces import CacheGroup


@dataclass(slots=True)
class StepRows:
    """What the rows of a step's logits are for.

    Attributes:
        count: Rows in all.
        chosen: Sequences that get a token, each with the first of its ``len(drafts) + 1`` rows.
        scored: Positions of prompts whose log-probabilities are wanted, each with its row.
        pooled: Sequences that are embedded, each with how many rows of hidden states it gets; in the order of the rows.
    """

    count: int = 0
    chosen: list[tuple[Sequence, int]] = field(default_factory=list)
    scored: list[tuple[Sequence, int, int]] = field(default_factory=list)
    pooled: list[tuple[Sequence, int]] = field(default_factory=list)


def lay_out(plan: list[Scheduled], groups: Many[CacheGroup], page_size: int) -> tuple[StepBatch, StepRows]:
    """The arrays of a step, and what its logit rows are for.

    A row is wanted for the last known token of a sequence and each of its drafts, which are chosen from, and for each
    position of a prompt whose log-probabilities were asked for. Of a prompt that is embedded hidden states are wanted
    instead.
    """
    counts = np.array([count for _, count in plan], dtype=np.int32)
    starts = np.zeros(len(plan) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    pasts = np.array([sequence.pages.num_computed for sequence, _ in plan], dtype=np.int64)
    owner = np.repeat(np.arange(len(plan)), counts)
    positions = np.arange(starts[-1], dtype=np.int64) + (pasts - starts[:-1])[owner]
    token_ids = np.empty(starts[-1], dtype=np.int64)
    rows = StepRows()
    logit_rows: list[int] = []
    largest: list[int] = []  # of the largest logits of each row, how many are wanted; 0: all
    hidden_rows: list[int] = []
    for (sequence, count), start, past in zip(plan, starts.tolist(), pasts.tolist(), strict=False):
        known = len(sequence.tokens)
        token_ids[start : start + count] = (
            sequence.tokens[-1:] + sequence.drafts if past == known - 1 else sequence.tokens[past : past + count]
        )
        if sequence.pool is not None:
            wanted = sequence.pool.wanted(past, count)
            rows.pooled.append((sequence, len(wanted)))
            hidden_rows.extend(range(start + wanted.start - past, start + wanted.stop - past))
            continue
        if sequence.wants_prompt_logprobs:
            _score_prompt(sequence, past, count, start, rows, logit_rows)
            largest += [0] * (len(logit_rows) - len(largest))
        if past + count >= known:
            rows.chosen.append((sequence, len(logit_rows)))
            rows.chosen += [(child, len(logit_rows)) for child in sequence.children]
            logit_rows.extend(range(start + known - 1 - past, start + count))
            largest += [_largest_wanted(sequence)] * (len(logit_rows) - len(largest))
    rows.count = len(logit_rows)
    first, *others = (_tables(plan, index, group, owner, positions, page_size) for index, group in enumerate(groups))
    batch = StepBatch(
        token_ids=token_ids,
        positions=positions,
        query_starts=starts,
        seq_lens=(pasts + counts).astype(np.int32),
        block_tables=first.block_tables,
        slot_mapping=first.slot_mapping,
        logit_rows=np.array(logit_rows, dtype=np.int64),
        others=tuple(others),
        hidden_rows=np.array(hidden_rows, dtype=np.int64) if rows.pooled else None,
        largest_wanted=np.array(largest, dtype=np.int32) if any(largest) else None,
    )
    return batch, rows


def _score_prompt(sequence: Sequence, past: int, count: int, start: int, rows: StepRows, logit_rows: list[int]) -> None:
    """Add the positions of the prompt whose successors are not scored yet; the last has none, it is chosen from."""
    scored = sequence.state.prompt_logprobs
    assert scored is not None
    for position in range(max(past, len(scored) - 1), min(past + count, sequence.state.prompt_length - 1)):
        rows.scored.append((sequence, position, len(logit_rows)))
        logit_rows.append(start + position - past)


def _largest_wanted(sequence: Sequence) -> int:
    """How many of the largest logits choosing its next token looks at, or that of its continuations; 0 for all."""
    sampler = sequence.sampler
    if sampler is None or sampler.edits_logits or sequence.structure is not None:
        return 0
    if sequence.output.cumulative_logprob is not None:  # log-probabilities are wanted
        return 0
    return 1 if sampler.greedy else sampler.top_k


def _tables(
    plan: list[Scheduled],
    index: int,
    group: CacheGroup,
    owner: NDArray[np.int64],
    positions: NDArray[np.int64],
    page_size: int,
) -> GroupTables:
    pages = [sequence.pages.tables[index] for sequence, _ in plan]
    tables = np.full((len(plan), max(map(len, pages))), -1, dtype=np.int32)
    for row, table in zip(tables, pages, strict=True):
        row[: len(table)] = table
    if group.kind == "state":
        return GroupTables(block_tables=tables, slot_mapping=np.empty(0, dtype=np.int64))
    page, offset = np.divmod(positions, page_size)
    slots = tables[owner, page].astype(np.int64) * page_size + offset
    return GroupTables(block_tables=tables, slot_mapping=slots)
