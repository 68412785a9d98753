"""Running a loaded model over caches, in steps laid out by hand: what an engine's scheduler and page table would do."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference_pio.attention import ContiguousKVCache, PagedKVCache, ragged_batch
from inference_pio.interfaces import StepBatch
from inference_pio.testing._trace import Trace, record_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inference_pio.interfaces import KVCache
    from inference_pio.testing._load import LoadedModel

_STALE = 1e4


def contiguous_cache(loaded: LoadedModel, *, num_sequences: int, max_length: int) -> KVCache:
    """A cache of one page of ``max_length`` tokens per sequence, full of stale values."""
    cache = ContiguousKVCache(
        loaded.shape.attention,
        num_sequences=num_sequences,
        max_length=max_length,
        dtype=loaded.dtype,
        device=loaded.device,
    )
    return _stale(cache, loaded.shape.num_layers)


def paged_cache(loaded: LoadedModel, *, num_pages: int, page_size: int) -> KVCache:
    """A cache of ``num_pages`` pages of ``page_size`` tokens, full of stale values."""
    cache = PagedKVCache(
        loaded.shape.attention, num_pages=num_pages, page_size=page_size, dtype=loaded.dtype, device=loaded.device
    )
    return _stale(cache, loaded.shape.num_layers)


def random_pages(lengths: Sequence[int], *, num_pages: int, page_size: int, seed: int = 0) -> list[list[int]]:
    """Pages for sequences of ``lengths`` tokens, drawn without order from the pool.

    Raises:
        ValueError: The pool is too small.
    """
    counts = [math.ceil(length / page_size) for length in lengths]
    if sum(counts) > num_pages:
        raise ValueError(f"{sum(counts)} pages of {page_size} tokens are needed, and there are {num_pages}")
    pool = random.Random(seed).sample(range(num_pages), sum(counts))  # noqa: S311 - a test layout, not a secret
    return [[pool.pop() for _ in range(count)] for count in counts]


def run_schedule(
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    schedule: Sequence[Sequence[int]],
    *,
    cache: KVCache,
    pages: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Run all tokens of ``sequences`` through the model, in the steps of ``schedule``.

    Args:
        loaded: The model.
        sequences: Token ids of each sequence.
        schedule: Per step, how many further tokens each sequence gets; 0 leaves it out of the step.
        cache: Where keys and values go.
        pages: Page numbers of each sequence, in order.

    Returns:
        Per sequence, logits float32 (tokens, V).

    Raises:
        ValueError: The schedule does not run every token exactly once.
    """
    totals = [sum(counts) for counts in zip(*schedule, strict=True)]
    if totals != [len(ids) for ids in sequences]:
        raise ValueError(f"the schedule runs {totals} tokens of sequences of {[len(ids) for ids in sequences]}")
    done = [0] * len(sequences)
    logits: list[list[Tensor]] = [[] for _ in sequences]
    for counts in schedule:
        active = [index for index, count in enumerate(counts) if count]
        step = step_batch(sequences, done, counts, pages, page_size=cache.page_size)
        rows = _forward(loaded, step, cache)
        for index, part in zip(active, torch.split(rows, [counts[index] for index in active]), strict=True):
            logits[index].append(part)
            done[index] += counts[index]
    return [torch.cat(parts) for parts in logits]


def run_whole(loaded: LoadedModel, token_ids: Sequence[int]) -> Tensor:
    """Logits float32 (tokens, V) of one sequence in one step over a fresh contiguous cache."""
    cache = contiguous_cache(loaded, num_sequences=1, max_length=len(token_ids))
    return run_schedule(loaded, [token_ids], [[len(token_ids)]], cache=cache, pages=[[0]])[0]


def trace_model(loaded: LoadedModel, token_ids: Sequence[int]) -> Trace:
    """Logits and hidden states of ``token_ids`` in one step over a fresh contiguous cache."""
    with record_layers(loaded.module, loaded.shape.num_layers) as layers:
        logits = run_whole(loaded, token_ids)
    return Trace(logits=logits, layers=tuple(layers))


def random_tokens(loaded: LoadedModel, count: int, *, seed: int = 0) -> list[int]:
    """``count`` token ids of the model's vocabulary."""
    draw = random.Random(seed)  # noqa: S311 - test data, not a secret
    return [draw.randrange(loaded.shape.vocab_size) for _ in range(count)]


def step_batch(
    sequences: Sequence[Sequence[int]],
    done: Sequence[int],
    counts: Sequence[int],
    pages: Sequence[Sequence[int]],
    *,
    page_size: int,
) -> StepBatch:
    """The step that runs ``counts[i]`` tokens of sequence ``i`` after the ``done[i]`` that are cached already."""
    active = [index for index, count in enumerate(counts) if count]
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for index in active:
        span = range(done[index], done[index] + counts[index])
        token_ids.extend(sequences[index][position] for position in span)
        positions.extend(span)
        slots.extend(pages[index][position // page_size] * page_size + position % page_size for position in span)
    widest = max(len(pages[index]) for index in active)
    tables = [[*pages[index], *[-1] * (widest - len(pages[index]))] for index in active]
    return StepBatch(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        query_starts=np.cumsum([0, *(counts[index] for index in active)], dtype=np.int32),
        seq_lens=np.array([done[index] + counts[index] for index in active], dtype=np.int32),
        block_tables=np.array(tables, dtype=np.int32),
        slot_mapping=np.array(slots, dtype=np.int64),
        logit_rows=np.arange(len(token_ids), dtype=np.int64),
    )


def _forward(loaded: LoadedModel, step: StepBatch, cache: KVCache) -> Tensor:
    hidden = loaded.hidden(
        torch.from_numpy(step.token_ids).to(loaded.device),
        torch.from_numpy(step.positions).to(loaded.device),
        cache,
        ragged_batch(step, loaded.device),
    )
    return loaded.logits(hidden).float()


def _stale(cache: KVCache, num_layers: int) -> KVCache:
    """Fill the storage with large values, as if other sequences had used it: reading past a sequence's end shows."""
    for index in range(num_layers):
        cache.layer(index).key_pages.fill_(_STALE)
        cache.layer(index).value_pages.fill_(_STALE)
    return cache
