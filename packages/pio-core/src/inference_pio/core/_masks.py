"""The masks of a step, computed while the model runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.core._vocabulary import mask_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from llguidance import LLExecutor
    from numpy.typing import NDArray

    from inference_pio.core._structure import Structure

_CORES_PER_THREAD = 4  # the others are the model's
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class MaskJob:
    """The masks of one sequence.

    Attributes:
        structure: Where the sequence stands. No two jobs of a step share one; all come from one compiler.
        rows: Rows of the step's masks; row ``rows[j]`` becomes the mask after the first ``j`` tokens of ``ahead``.
        ahead: Draft tokens. One that is not allowed ends the draft: later rows stay all-allowed, as none is used.
    """

    structure: Structure
    rows: Sequence[int]
    ahead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.rows) > len(self.ahead) + 1:
            msg = f"{len(self.rows)} rows, but only {len(self.ahead)} tokens ahead"
            raise ValueError(msg)


class PendingMasks:
    """Masks that are being computed. Until :meth:`result` returns, the jobs' structures must not be used.

    Args:
        num_words: int32 words of a mask.
        jobs: What is computed.
        future: Where it arrives: int32 (M, W), one row for each row of the jobs; None if there are no jobs.
    """

    def __init__(self, num_words: int, jobs: Sequence[MaskJob], future: Future[NDArray[np.int32]] | None) -> None:
        self._num_words = num_words
        self._jobs = jobs
        self._future = future

    def result(self, num_rows: int) -> NDArray[np.int32] | None:
        """Wait for the masks.

        A structure that cannot go on allows nothing: its rows are zero, and its ``error`` says why.

        Returns:
            int32 (num_rows, W) as in ``SamplingBatch.masks``, all ones in rows of no job; None if there are no jobs.
        """
        if self._future is None:
            return None
        computed = self._future.result()
        masks = np.full((num_rows, self._num_words), -1, dtype=np.int32)
        masks[np.fromiter((row for job in self._jobs for row in job.rows), dtype=np.int64)] = computed
        return masks


class MaskWorker:
    """Computes masks beside the model: ``llguidance`` leaves Python's lock while it works.

    Args:
        vocab_size: Logits per row.
        threads: Threads for the masks of one step; None takes one for every four cores, at most eight.
    """

    def __init__(self, vocab_size: int, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            msg = f"threads must be at least 1, got {threads}"
            raise ValueError(msg)
        self._num_words = mask_words(vocab_size)
        self._threads = threads or min(_MAX_THREADS, max(1, (os.cpu_count() or 1) // _CORES_PER_THREAD))
        self._thread: ThreadPoolExecutor | None = None
        self._parallel: LLExecutor | None = None

    def start(self, jobs: Sequence[MaskJob]) -> PendingMasks:
        """Begin to compute; costs nothing where there are no jobs."""
        if not jobs:
            return PendingMasks(self._num_words, (), None)
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pio-masks")
        return PendingMasks(self._num_words, jobs, self._thread.submit(self._compute, jobs))

    def close(self) -> None:
        """Stop the threads. Harmless when called twice."""
        if self._thread is not None:
            self._thread.shutdown()
        self._thread = self._parallel = None

    def _compute(self, jobs: Sequence[MaskJob]) -> NDArray[np.int32]:
        from llguidance import LLExecutor

        if self._parallel is None:
            self._parallel = LLExecutor(self._threads)
        starts = np.cumsum([0, *(len(job.rows) for job in jobs)]).tolist()
        masks = np.full((starts[-1], self._num_words), -1, dtype=np.int32)
        going = [
            (job.structure.matcher, start, _before_end(job))
            for job, start in zip(jobs, starts[:-1], strict=True)
            if job.rows and not job.structure.has_ended
        ]
        plain = [(matcher, start) for matcher, start, draft in going if not draft]
        drafted = [entry for entry in going if entry[2]]
        row_bytes = self._num_words * masks.itemsize
        if plain:
            self._parallel.unsafe_compute_mask_ptr(plain, masks.ctypes.data, row_bytes, len(masks))
        if drafted:
            self._parallel.unsafe_compute_mask_ptr_with_draft_token(drafted, masks.ctypes.data, row_bytes, len(masks))
        computed = (masks != -1).any(axis=1)  # padding at least is never allowed
        np.bitwise_and(masks, jobs[0].structure.vocabulary.selectable, out=masks, where=computed[:, None])
        for job, start, stop in zip(jobs, starts[:-1], starts[1:], strict=True):
            _finish(job, masks[start:stop], computed[start:stop])
        return masks


def _before_end(job: MaskJob) -> list[int]:
    """Draft tokens that masks are wanted after, up to the first end token."""
    ahead = job.ahead[: max(0, len(job.rows) - 1)]
    ends = job.structure.vocabulary.end_token_ids
    return list(ahead[: next((index for index, token_id in enumerate(ahead) if token_id in ends), len(ahead))])


def _finish(job: MaskJob, masks: NDArray[np.int32], computed: NDArray[np.bool_]) -> None:
    """What the matcher does not know: errors, and what follows an end token."""
    structure = job.structure
    end_mask = structure.vocabulary.end_mask
    if structure.has_ended:
        masks[:] = end_mask
    elif structure.matcher.is_error():
        masks[:] = 0
    elif len(masks) > 1:
        end = len(_before_end(job))
        if end + 1 < len(masks) and computed[end] and (masks[end] & end_mask).any():
            masks[end + 1 :] = end_mask
