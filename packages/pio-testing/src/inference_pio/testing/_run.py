"""Running a loaded model over caches, in steps laid out by hand: what an engine's scheduler and page table would do."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference_pio.attention import ContiguousKVCache, PagedKVCache, ragged_batch
from inference_pio.interfaces import GroupTables, StateSpec, StepBatch
from inference_pio.testing._trace import Trace, record_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inference_pio.interfaces import CacheGroup, KVCache
    from inference_pio.testing._load import LoadedModel

_STALE = 1e4


def contiguous_cache(loaded: LoadedModel, *, num_sequences: int, max_length: int) -> KVCache:
    """A cache of one page of ``max_length`` tokens per sequence, full of stale values."""
    cache = ContiguousKVCache(
        loaded.shape.cache_specs,
        num_sequences=num_sequences,
        max_length=max_length,
        dtype=loaded.dtype,
        device=loaded.device,
    )
    return _stale(cache, loaded)


def paged_cache(loaded: LoadedModel, *, num_pages: int, page_size: int) -> KVCache:
    """A cache of ``num_pages`` pages of ``page_size`` tokens in each group of layers, full of stale values."""
    cache = PagedKVCache(
        loaded.shape.cache_specs, num_pages=num_pages, page_size=page_size, dtype=loaded.dtype, device=loaded.device
    )
    return _stale(cache, loaded)


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
        pages: Page numbers of each sequence, in order, in the first group of layers; other groups have pages of their
            own, see :func:`step_batch`.

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
        step = step_batch(sequences, done, counts, pages, page_size=cache.page_size, groups=cache.groups)
        rows = _forward(loaded, step, cache)
        for index, part in zip(active, torch.split(rows, [counts[index] for index in active]), strict=True):
            logits[index].append(part)
            done[index] += counts[index]
    return [torch.cat(parts) for parts in logits]


def run_whole(loaded: LoadedModel, token_ids: Sequence[int]) -> Tensor:
    """Logits float32 (tokens, V) of one sequence in one step over a fresh contiguous cache."""
    cache = contiguous_cache(loaded, num_sequences=1, max_length=len(token_ids))
    return run_schedule(loaded, [token_ids], [[len(token_ids)]], cache=cache, pages=[[0]])[0]


def hidden_whole(loaded: LoadedModel, token_ids: Sequence[int]) -> Tensor:
    """Hidden states after the final norm, float32 (tokens, E), of one sequence in one step over a fresh cache."""
    cache = contiguous_cache(loaded, num_sequences=1, max_length=len(token_ids))
    step = step_batch([token_ids], [0], [len(token_ids)], [[0]], page_size=cache.page_size, groups=cache.groups)
    return _hidden(loaded, step, cache).float()


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
    groups: Sequence[CacheGroup] = (),
) -> StepBatch:
    """The step that runs ``counts[i]`` tokens of sequence ``i`` after the ``done[i]`` that are cached already.

    ``pages`` are those of the first of ``groups``. Group ``g`` has each page ``g`` further on, around the end of its
    pool, less those that its window has left behind; a group of states has the first page of each sequence.
    """
    active = [index for index, count in enumerate(counts) if count]
    spans = [range(done[index], done[index] + counts[index]) for index in active]
    tables = [
        _tables([pages[index] for index in active], spans, page_size, group=group, shift=shift)
        for shift, group in enumerate(groups or (None,))
    ]
    rows = sum(map(len, spans))
    return StepBatch(
        token_ids=np.array(
            [sequences[index][position] for index, span in zip(active, spans, strict=True) for position in span],
            dtype=np.int64,
        ),
        positions=np.array([position for span in spans for position in span], dtype=np.int64),
        query_starts=np.cumsum([0, *map(len, spans)], dtype=np.int32),
        seq_lens=np.array([span.stop for span in spans], dtype=np.int32),
        block_tables=tables[0].block_tables,
        slot_mapping=tables[0].slot_mapping,
        logit_rows=np.arange(rows, dtype=np.int64),
        others=tuple(tables[1:]),
    )


def _tables(
    pages: Sequence[Sequence[int]], spans: Sequence[range], page_size: int, *, group: CacheGroup | None, shift: int
) -> GroupTables:
    """Where sequences on ``pages`` of the first group, running the positions of ``spans``, lie in ``group``."""
    own = [[(page + shift) % group.num_pages for page in one] if group else list(one) for one in pages]
    if group is not None and group.kind == "state":
        firsts = [[one[0]] for one in own]
        return GroupTables(block_tables=np.array(firsts, dtype=np.int32), slot_mapping=np.empty(0, dtype=np.int64))
    slots = [
        one[position // page_size] * page_size + position % page_size
        for one, span in zip(own, spans, strict=True)
        for position in span
    ]
    table = np.full((len(own), max(map(len, own))), -1, dtype=np.int32)
    for row, one, span in zip(table, own, spans, strict=True):
        left = 0 if group is None or group.window is None else max(0, span.start - group.window + 1) // page_size
        row[left : len(one)] = one[left:]
    return GroupTables(block_tables=table, slot_mapping=np.array(slots, dtype=np.int64))


def _forward(loaded: LoadedModel, step: StepBatch, cache: KVCache) -> Tensor:
    return loaded.logits(_hidden(loaded, step, cache)).float()


def _hidden(loaded: LoadedModel, step: StepBatch, cache: KVCache) -> Tensor:
    return loaded.hidden(
        torch.from_numpy(step.token_ids).to(loaded.device),
        torch.from_numpy(step.positions).to(loaded.device),
        cache,
        ragged_batch(step, loaded.device),
    )


def _stale(cache: PagedKVCache | ContiguousKVCache, loaded: LoadedModel) -> KVCache:
    """Fill the storage with large values, as if other sequences had used it: reading past a sequence's end shows."""
    for index, spec in enumerate(loaded.shape.cache_specs):
        kept = cache.state(index) if isinstance(spec, StateSpec) else cache.layer(index)
        for tensor in kept.tensors:
            tensor.fill_(_STALE)
    return cache
