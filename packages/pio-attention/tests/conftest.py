"""Specs, shapes and caches that the tests share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import pytest
import torch

from inference_pio.interfaces import AttentionSpec

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import RaggedBatch

# Triton decides when it is first imported, which any test may bring about, whether its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

HEADS = [(4, 4), (9, 3), (8, 2), (4, 1)]  # MHA, SmolLM2's and another GQA, MQA
REACHES = [(True, None), (True, 1), (True, 5), (True, 1000), (False, None), (False, 1), (False, 4)]
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}

# (query_lens, key_lens): decode, prefill, chunks after a past, cross lengths, nothing.
RAGGED = [
    ((1,), (1,)),
    ((1,), (40,)),
    ((7,), (7,)),
    ((70,), (70,)),
    ((5,), (33,)),
    ((60,), (300,)),
    ((300,), (310,)),
    ((1, 1, 1), (5, 17, 33)),
    ((6, 1, 3), (6, 20, 11)),
    ((4, 0, 2), (9, 3, 2)),
    ((3, 5), (3, 2)),
    ((2, 3), (0, 4)),
    ((), ()),
]


class MakeQKV(Protocol):
    def __call__(
        self, spec: AttentionSpec, num_queries: int, num_keys: int, dtype: torch.dtype = ...
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The explicit grid: a test that names one of these arguments runs for each of its values."""
    for name, values in (("heads", HEADS), ("reach", REACHES)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=lambda value: str(value).removeprefix("torch."))


@pytest.fixture
def tolerance(dtype: torch.dtype) -> float:
    return TOLERANCES[dtype]


@pytest.fixture
def ragged() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return RAGGED


@pytest.fixture
def assert_close():
    """Compare within a tolerance, naming the case in the message."""

    def check(out: Tensor, expected: Tensor, tolerance: float, label: str) -> None:
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance, msg=lambda text: f"{label}: {text}")

    return check


@pytest.fixture
def make_qkv() -> MakeQKV:
    """Random packed queries, keys and values from a fixed seed."""
    generator = torch.Generator().manual_seed(0)

    def make(
        spec: AttentionSpec, num_queries: int, num_keys: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor, Tensor]:
        shapes = (
            (num_queries, spec.num_heads, spec.head_dim),
            (num_keys, spec.num_kv_heads, spec.head_dim),
            (num_keys, spec.num_kv_heads, spec.head_dim),
        )
        q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        return q, k, v

    return make


@pytest.fixture
def fill():
    """Write whole sequences, packed (sum of seq_lens, K, D), to a layer's cache through the batch's block tables."""

    def write(cache, batch: RaggedBatch, k: Tensor, v: Tensor, page_size: int) -> None:
        slots = [
            int(table[position // page_size]) * page_size + position % page_size
            for length, table in zip(batch.seq_lens, batch.block_tables, strict=True)
            for position in range(length)
        ]
        cache.write(k, v, torch.tensor(slots, dtype=torch.int64, device=k.device))

    return write


@pytest.fixture
def small_spec() -> AttentionSpec:
    return AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8)
