"""Cache equivalence: however a sequence is cut, placed and batched, the logits stay the same to rounding.

Each check takes a loaded model, compares with one forward of the whole sequence alone over a contiguous cache, and
raises :class:`ParityError` where the two part. A model whose rotary embedding depends on the length of the sequence
(dynamic NTK, longrope) keeps these promises only within its original context.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from inference_pio.testing._compare import compare
from inference_pio.testing._run import (
    contiguous_cache,
    paged_cache,
    random_pages,
    random_tokens,
    run_schedule,
    run_whole,
)

if TYPE_CHECKING:
    from inference_pio.testing._load import LoadedModel

_LENGTH = 41
_MOST_SEQUENCES = 5
_PAGE_SIZES = (1, 5, 16)


def check_step_by_step(loaded: LoadedModel, *, tolerance: float = 1e-4) -> None:
    """One token at a time equals the whole sequence at once.

    Raises:
        ParityError: It does not.
    """
    ids = random_tokens(loaded, min(_LENGTH, loaded.shape.max_position))
    cache = contiguous_cache(loaded, num_sequences=1, max_length=len(ids))
    actual = run_schedule(loaded, [ids], [[1]] * len(ids), cache=cache, pages=[[0]])[0]
    compare("step by step against whole", actual, run_whole(loaded, ids), tolerance=tolerance)


def check_chunked(loaded: LoadedModel, *, tolerance: float = 1e-4, layouts: int = 3) -> None:
    """A prompt in chunks of random sizes equals the prompt at once.

    Raises:
        ParityError: It does not.
    """
    ids = random_tokens(loaded, min(_LENGTH, loaded.shape.max_position), seed=1)
    expected = run_whole(loaded, ids)
    for seed in range(layouts):
        schedule = random_schedule([len(ids)], largest=17, seed=seed)
        cache = contiguous_cache(loaded, num_sequences=1, max_length=len(ids))
        actual = run_schedule(loaded, [ids], schedule, cache=cache, pages=[[0]])[0]
        chunks = [counts[0] for counts in schedule]
        compare(f"chunks of {chunks} against whole", actual, expected, tolerance=tolerance)


def check_batched(loaded: LoadedModel, *, tolerance: float = 1e-4, layouts: int = 3) -> None:
    """Sequences of random lengths, prefilling and decoding side by side, equal each one alone.

    Raises:
        ParityError: They do not.
    """
    for seed in range(layouts):
        sequences = random_mix(loaded, seed=seed)
        lengths = [len(ids) for ids in sequences]
        schedule = random_schedule(lengths, largest=6, seed=seed)
        cache = contiguous_cache(loaded, num_sequences=len(sequences), max_length=max(lengths))
        pages = random_pages(lengths, num_pages=len(sequences), page_size=max(lengths), seed=seed)
        actual = run_schedule(loaded, sequences, schedule, cache=cache, pages=pages)
        for index, (ours, ids) in enumerate(zip(actual, sequences, strict=True)):
            what = f"sequence {index} of {len(sequences)} batched (layout {seed}) against alone"
            compare(what, ours, run_whole(loaded, ids), tolerance=tolerance)


def check_paged(loaded: LoadedModel, *, tolerance: float = 1e-4, layouts: int = 2) -> None:
    """Random mixes on pages scattered at random over a pool equal contiguous storage, at several page sizes.

    Raises:
        ParityError: They do not.
    """
    for seed in range(layouts):
        sequences = random_mix(loaded, seed=layouts + seed)
        expected = [run_whole(loaded, ids) for ids in sequences]
        lengths = [len(ids) for ids in sequences]
        for page_size in _PAGE_SIZES:
            num_pages = sum(length // page_size + 2 for length in lengths)
            schedule = random_schedule(lengths, largest=9, seed=seed)
            cache = paged_cache(loaded, num_pages=num_pages, page_size=page_size)
            pages = random_pages(lengths, num_pages=num_pages, page_size=page_size, seed=seed)
            actual = run_schedule(loaded, sequences, schedule, cache=cache, pages=pages)
            for index, (ours, alone) in enumerate(zip(actual, expected, strict=True)):
                what = f"sequence {index} in pages of {page_size} (layout {seed}) against contiguous"
                compare(what, ours, alone, tolerance=tolerance)


def check_logit_rows(loaded: LoadedModel, *, tolerance: float = 1e-4) -> None:
    """Logits of chosen rows equal the same rows of all logits; no rows give none.

    Raises:
        ParityError: They do not.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, loaded.shape.hidden_size, generator=generator).to(loaded.device, loaded.dtype)
    everything = loaded.logits(hidden).float()
    for rows in ([0, 3, 8], [5], []):
        chosen = loaded.logits(hidden[rows]).float()
        compare(f"logits of rows {rows} alone against all", chosen, everything[rows], tolerance=tolerance)


def random_mix(loaded: LoadedModel, *, seed: int) -> list[list[int]]:
    """A few sequences of random tokens and lengths; one of them is long, and one is a single token."""
    draw = random.Random(seed)  # noqa: S311 - test data, not a secret
    longest = min(_LENGTH, loaded.shape.max_position)
    lengths = [1, longest, *(draw.randint(1, longest) for _ in range(draw.randint(0, _MOST_SEQUENCES - 2)))]
    draw.shuffle(lengths)
    return [random_tokens(loaded, length, seed=draw.getrandbits(32)) for length in lengths]


def random_schedule(lengths: list[int], *, largest: int, seed: int) -> list[list[int]]:
    """Steps that run sequences of ``lengths`` tokens to their ends, ``0 .. largest`` tokens of each at a time."""
    draw = random.Random(seed)  # noqa: S311 - a test layout, not a secret
    left = list(lengths)
    schedule: list[list[int]] = []
    while any(left):
        counts = [min(remaining, draw.randint(0, largest)) for remaining in left]
        if any(counts):
            schedule.append(counts)
            left = [remaining - count for remaining, count in zip(left, counts, strict=True)]
    return schedule
