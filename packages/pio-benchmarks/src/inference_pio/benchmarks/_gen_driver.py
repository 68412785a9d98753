"""Steps of made-up tokens through an executor: the engine's seam without the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference_pio.cache import CacheManager
from inference_pio.interfaces import DoesNotFitError, GroupTables, StepBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference_pio.cache import SequencePages
    from inference_pio.interfaces import CacheGroup, Executor


class StepDriver:
    """Sequences of random tokens that an executor reads, some tokens of each per step.

    Args:
        executor: Computes the model; its pages belong to the driver from now on.
        vocab_size: Tokens are drawn below this.
        seed: Makes the tokens repeatable.
        largest: How many of the largest logits are wanted where any are; 0 for all.
    """

    def __init__(self, executor: Executor, *, vocab_size: int, seed: int = 0, largest: int = 0) -> None:
        self._executor = executor
        self._largest = largest
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(seed)
        self._manager = CacheManager(executor.cache_groups, page_size=executor.page_size, prefix_caching=False)
        self.sequences: list[SequencePages] = []

    def open(self, count: int, length: int, tokens: Sequence[int] | None = None) -> None:
        """Begin ``count`` sequences of up to ``length`` tokens: ``tokens``, or random ones.

        Raises:
            DoesNotFitError: The cache has no room for another sequence.
        """
        for _ in range(count):
            drawn = self._random.integers(self._vocab_size, size=length).tolist() if tokens is None else list(tokens)
            sequence = self._manager.open(drawn, reuse=False)
            if not self._manager.admit(sequence, 1, expected=length):
                raise DoesNotFitError(f"the cache has no room for {count} sequences", hint="a smaller batch")
            self.sequences.append(sequence)

    def fill(self, context: int, chunk: int) -> None:
        """Put ``context`` tokens of each open sequence into the cache.

        The first sequence is computed, in steps of ``chunk`` tokens, and its pages are copied for the others: what the
        tokens are makes no difference to the speed of what follows, only where they lie.
        """
        first, *others = self.sequences
        for start in range(0, context, chunk):
            count = min(chunk, context - start)
            self.step(count, [first])
            for sequence in others:
                self._grow(sequence, start + count)
                self._manager.commit(sequence, start + count)
        for sequence in others if context else ():
            for group, (sources, targets) in enumerate(zip(first.tables, sequence.tables, strict=True)):
                pairs = [pair for pair in zip(sources, targets, strict=False) if -1 not in pair]
                self._executor.copy_pages(group, [source for source, _ in pairs], [target for _, target in pairs])

    def step(self, count: int, sequences: Sequence[SequencePages] | None = None, *, all_logits: bool = False) -> object:
        """Read the next ``count`` tokens of each sequence.

        Args:
            count: Tokens per sequence.
            sequences: Whose; None for all that are open.
            all_logits: Whether logits are wanted after every token, or after each sequence's last one.

        Returns:
            What the executor gives: logits (R, V) of the wanted rows.

        Raises:
            DoesNotFitError: The cache has no room for the tokens.
        """
        return self._executor.step(self._lay_out(count, sequences, all_logits=all_logits))

    def lay_out(self, counts: Sequence[int]) -> list[StepBatch]:
        """The steps that read so many tokens of each open sequence, one after the other, to be run in this order.

        Raises:
            DoesNotFitError: The cache has no room for the tokens.
        """
        return [self._lay_out(count, None, all_logits=False) for count in counts]

    def run(self, batches: Sequence[StepBatch]) -> None:
        """Run steps that were laid out, and nothing else."""
        for batch in batches:
            self._executor.step(batch)

    def _lay_out(self, count: int, sequences: Sequence[SequencePages] | None, *, all_logits: bool) -> StepBatch:
        """The next step, with its tokens' pages taken; from now on they count as computed."""
        chosen = self.sequences if sequences is None else sequences
        for sequence in chosen:
            self._grow(sequence, sequence.num_computed + count)
        for move in self._manager.take_moves():
            self._executor.copy_pages(move.group, move.sources, move.targets)
        batch = self._batch(chosen, count, all_logits=all_logits)
        for sequence in chosen:
            self._manager.commit(sequence, sequence.num_computed + count)
        return batch

    def close(self) -> None:
        """Give the pages of all sequences back."""
        for sequence in self.sequences:
            self._manager.release(sequence)
        self.sequences = []

    def _grow(self, sequence: SequencePages, length: int) -> None:
        if not self._manager.grow(sequence, length):
            raise DoesNotFitError(
                f"the cache has no room for {len(self.sequences)} sequences of {length} tokens",
                hint="a smaller batch or context",
            )

    def _batch(self, sequences: Sequence[SequencePages], count: int, *, all_logits: bool) -> StepBatch:
        pasts = np.array([sequence.num_computed for sequence in sequences], dtype=np.int64)
        positions = (pasts[:, None] + np.arange(count)).reshape(-1)
        tokens = [sequence.tokens[past : past + count] for sequence, past in zip(sequences, pasts, strict=True)]
        ends = np.arange(len(sequences) + 1) * count
        first, *others = (
            self._tables(sequences, index, group, positions, count)
            for index, group in enumerate(self._executor.cache_groups)
        )
        rows = np.arange(positions.size) if all_logits else ends[1:] - 1
        return StepBatch(
            token_ids=np.array(tokens, dtype=np.int64).reshape(-1),
            positions=positions,
            query_starts=ends.astype(np.int32),
            seq_lens=(pasts + count).astype(np.int32),
            block_tables=first.block_tables,
            slot_mapping=first.slot_mapping,
            logit_rows=rows,
            others=tuple(others),
            largest_wanted=np.full(rows.size, self._largest, dtype=np.int32) if self._largest else None,
        )

    def _tables(
        self,
        sequences: Sequence[SequencePages],
        index: int,
        group: CacheGroup,
        positions: NDArray[np.int64],
        count: int,
    ) -> GroupTables:
        pages = [sequence.tables[index] for sequence in sequences]
        tables = np.full((len(pages), max(map(len, pages))), -1, dtype=np.int32)
        for row, table in zip(tables, pages, strict=True):
            row[: len(table)] = table
        if group.kind == "state":
            return GroupTables(block_tables=tables, slot_mapping=np.empty(0, dtype=np.int64))
        page, offset = np.divmod(positions, self._executor.page_size)
        owners = np.repeat(np.arange(len(pages)), count)
        slots = tables[owners, page].astype(np.int64) * self._executor.page_size + offset
        return GroupTables(block_tables=tables, slot_mapping=slots)
