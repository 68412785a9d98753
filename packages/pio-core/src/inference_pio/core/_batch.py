"""A plan laid out as one ragged batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inference_pio.interfaces import StepBatch

if TYPE_CHECKING:
    from inference_pio.core._scheduler import Scheduled
    from inference_pio.core._sequence import Sequence


class LogitRow(NamedTuple):
    """What one row of the step's logits is for: the token that follows ``position``."""

    sequence: Sequence
    position: int


def lay_out(plan: list[Scheduled], page_size: int) -> tuple[StepBatch, list[LogitRow]]:
    """The arrays of a step, and what each of its logit rows is for.

    A row is wanted for the last known token of a sequence, which is sampled from, and for each position of a prompt
    whose log-probabilities were asked for.
    """
    counts = [count for _, count in plan]
    starts = np.zeros(len(plan) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    total = int(starts[-1])
    token_ids = np.empty(total, dtype=np.int64)
    positions = np.empty(total, dtype=np.int64)
    slots = np.empty(total, dtype=np.int64)
    width = max(len(sequence.pages) for sequence, _ in plan)
    tables = np.full((len(plan), width), -1, dtype=np.int32)
    rows: list[int] = []
    meaning: list[LogitRow] = []
    for index, (sequence, count) in enumerate(plan):
        start, past = int(starts[index]), sequence.num_computed
        here = slice(start, start + count)
        tables[index, : len(sequence.pages)] = sequence.pages
        token_ids[here] = sequence.tokens[past : past + count]
        positions[here] = np.arange(past, past + count)
        slots[here] = (
            tables[index, positions[here] // page_size].astype(np.int64) * page_size + positions[here] % page_size
        )
        first = past if sequence.wants_prompt_logprobs else past + count - 1
        for position in range(first, past + count):
            if position < sequence.prompt_length - 1 and not sequence.wants_prompt_logprobs:
                continue  # a chunk that ends inside the prompt: nothing to sample yet
            rows.append(start + position - past)
            meaning.append(LogitRow(sequence, position))
    batch = StepBatch(
        token_ids=token_ids,
        positions=positions,
        query_starts=starts,
        seq_lens=np.array([sequence.num_computed + count for sequence, count in plan], dtype=np.int32),
        block_tables=tables,
        slot_mapping=slots,
        logit_rows=np.array(rows, dtype=np.int64),
    )
    return batch, meaning
