"""The native sampler chooses what the host sampler chooses, token for token."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from inference_pio.core._host_sampler import HostSampler
from inference_pio.core.native_sampler import NativeSampler
from inference_pio.interfaces import CacheGroup, LayerGroup, LogitEdits, LogprobQuery, SamplingBatch
from inference_pio.kernels import Runtime, load_parameters

ROWS = 24


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint):
    """A runtime of a tiny model; what it runs does not matter, but its vocabulary does."""
    from pathlib import Path

    from inference_pio.core import Registry, locate_model, open_checkpoint
    from inference_pio.core.native_executor import lower

    registry = Registry.discover()
    folder = tiny_checkpoint("llama", vocab_size=1531)
    checkpoint = open_checkpoint(locate_model(folder, registry, cache_dir=Path(folder)), registry)
    program = lower(checkpoint)
    parameters = load_parameters(program, checkpoint.source, checkpoint.weight_map, tied_head=checkpoint.tied_head)
    groups, layers = [CacheGroup(kind="full", num_pages=1)], [LayerGroup(kind="full", window=None, layers=(0, 1, 2))]
    with Runtime(program, parameters, groups, layers, page_size=16, max_tokens=8, threads=2) as opened:
        yield opened


def random_batch(generator, vocab_size, *, edited, masked):
    def edits(values):
        rows = np.repeat(np.arange(0, ROWS, 2), 5)
        tokens = np.concatenate([generator.choice(vocab_size, 5, replace=False) for _ in range(0, ROWS, 2)])
        return LogitEdits(rows=rows, token_ids=tokens, values=np.resize(np.float32(values), rows.size))

    masks = None
    if masked:
        masks = generator.integers(-(2**31), 2**31, (ROWS, -(-vocab_size // 32)), dtype=np.int64).astype(np.int32)
        masks[::3] = -1
    return SamplingBatch(
        rows=generator.integers(0, ROWS, ROWS),
        bias=edits([3.0, -2.0]) if edited else None,
        repetition=edits([1.3]) if edited else None,
        penalties=edits([-np.inf, 0.5]) if edited else None,
        masks=masks,
        temperature=generator.choice(np.float32([0.0, 0.5, 1.0, 1.7]), ROWS),
        top_k=generator.choice(np.int32([0, 1, 20, 5000]), ROWS),
        typical_p=generator.choice(np.float32([1.0, 1.0, 0.9]), ROWS),
        top_p=generator.choice(np.float32([1.0, 0.9, 0.3]), ROWS),
        min_p=generator.choice(np.float32([0.0, 0.0, 0.05]), ROWS),
        uniforms=generator.random(ROWS),
    )


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_those_of_the_host_sampler(runtime, edited, masked, seed):
    """Over filters, temperatures, edits and masks; rows that failed give -1 on both."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 4, (ROWS, 1531)).astype(np.float32)
    logits[3, 7] = np.nan
    logits[5] = -np.inf
    logits[6, 8] = np.inf
    before = logits.copy()
    batch = random_batch(generator, 1531, edited=edited, masked=masked)
    np.testing.assert_array_equal(NativeSampler(runtime).sample(logits, batch), HostSampler().sample(logits, batch))
    np.testing.assert_array_equal(logits, before)


def test_rows_that_are_all_edited(runtime):
    """No draw is left for the plain road."""
    generator = np.random.default_rng(7)
    logits = generator.normal(0, 4, (1, 1531)).astype(np.float32)
    batch = random_batch(generator, 1531, edited=False, masked=False)
    rows = np.arange(ROWS)
    bias = LogitEdits(rows=rows, token_ids=rows * 3, values=np.full(ROWS, 50.0, dtype=np.float32))
    batch = dataclasses.replace(batch, rows=np.zeros(ROWS, dtype=np.int64), bias=bias)
    np.testing.assert_array_equal(NativeSampler(runtime).sample(logits, batch), rows * 3)


def test_log_probabilities_are_those_of_the_host_sampler(runtime):
    """They are made by it."""
    logits = np.random.default_rng(1).normal(0, 4, (2, 1531)).astype(np.float32)
    queries = [LogprobQuery(0, 5, 3), LogprobQuery(1, None, 2)]
    assert NativeSampler(runtime).logprobs(logits, queries) == HostSampler().logprobs(logits, queries)


def test_what_is_no_array_is_refused(runtime):
    """As by the host sampler."""
    batch = random_batch(np.random.default_rng(0), 1531, edited=False, masked=False)
    with pytest.raises(ValueError, match=r"logits must be a NumPy array float32 \(R, V\), got list"):
        NativeSampler(runtime).sample([[1.0]], batch)
