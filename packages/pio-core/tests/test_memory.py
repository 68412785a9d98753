"""Sizing of the cache by memory."""

from __future__ import annotations

import pytest

from inference_pio.core._memory import available_memory, check_weights, plan_cache
from inference_pio.interfaces import AttentionSpec, DoesNotFitError, InvalidRequestError, ModelShape

SHAPE = ModelShape(
    architecture="Toy",
    num_layers=2,
    hidden_size=8,
    vocab_size=10,
    max_position=1024,
    attention=(AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8),) * 2,
    num_parameters=1000,
    bos_token_id=None,
    eos_token_ids=(),
)
PER_TOKEN = 2 * 2 * 2 * 8 * 2  # layers, k and v, heads, dim, bytes


def plan(tokens: float, **options):
    options = {"max_num_seqs": 4, "max_model_len": None, "contiguous": False, "max_step_tokens": 64} | options
    return plan_cache(SHAPE, dtype_bytes=2, budget=int(tokens * PER_TOKEN), **options)


def test_there_is_memory():
    """The probe gives a number of bytes that a running Python can believe."""
    assert 2**20 < available_memory() < 2**50


@pytest.mark.parametrize("contiguous", [False, True])
def test_plenty_serves_all_sequences_at_full_length(contiguous):
    """With memory enough the cache holds every sequence at the model's context."""
    cache = plan(1e6, contiguous=contiguous)
    assert cache.max_model_len == 1024
    assert cache.num_pages == (4 * 1024 // cache.page_size,)
    assert cache.num_host_pages == (0,)


def test_less_memory_serves_fewer_tokens_then_shorter_ones():
    """First the pool shrinks, then the context, down to a page."""
    assert plan(2000).num_pages == (2000 // 16,)
    assert plan(2000, contiguous=True).num_pages == (1,)
    short = plan(100)
    assert (short.max_model_len, short.num_pages) == (96, (6,))


@pytest.mark.parametrize("contiguous", [False, True])
def test_pages_come_in_the_multiple_that_a_backend_reads(contiguous):
    """A backend that reads pages of 256 tokens gets them, and no sequence loses a token by it."""
    cache = plan(1e6, contiguous=contiguous, page_multiple=256, max_model_len=1000)
    assert cache.page_size == (1024 if contiguous else 256)
    assert cache.max_model_len == 1000
    assert cache.num_pages == (4 * 1024 // cache.page_size,)


@pytest.mark.parametrize(("tokens", "length"), [(8, None), (500, 1000), (0, None), (-5, None)])
def test_what_does_not_fit_is_said(tokens, length):
    """A length that was asked for is never cut silently, and nothing is not a cache."""
    with pytest.raises(DoesNotFitError, match=r"needs \d+ bytes, the budget is -?\d+ \("):
        plan(tokens, max_model_len=length)


@pytest.mark.parametrize("length", [1, 1025])
def test_lengths_out_of_bounds(length):
    """A length beyond the model's context is a mistake, named with the context."""
    with pytest.raises(InvalidRequestError, match=f"context of 1024, got {length}"):
        plan(1e6, max_model_len=length)


def test_weights_that_do_not_fit():
    """The message has both sizes and the dtype."""
    with pytest.raises(DoesNotFitError, match=r"'m' need 2\.00 GiB in float32, and 1\.00 GiB are available"):
        check_weights("m", 2**31, "float32", 2**30)
