"""The Triton kernels held to the reference: on a GPU where there is one, else interpreted (see conftest.py)."""

import subprocess
import sys

import pytest
import torch

from inference_pio.attention import PagedKVCache, ReferenceAttention, get_backend, make_batch
from inference_pio.attention import _triton as backend_module
from inference_pio.attention._triton import TritonAttention
from inference_pio.interfaces import (
    AttentionBackend,
    AttentionSpec,
    BrokenDependencyError,
    MissingDependencyError,
    UnsupportedError,
)

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
TOLERANCES = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("triton", reason="triton is not installed here")
    return TritonAttention()


def spec_of(heads, reach=(True, None), head_dim=16, value_dim=None):
    return AttentionSpec(
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        causal=reach[0],
        window=reach[1],
        value_dim=value_dim,
    )


def check_cached(backend, spec, query_lens, seq_lens, *, page_size=16, dtype=torch.float32, cache_dtype=None):
    """Over pages in backward order, what was never stored NaN and what a window has left behind -1: the reference."""
    generator = torch.Generator().manual_seed(0)
    counts = [-(-length // page_size) for length in seq_lens]
    pages = list(range(sum(counts) + 2))
    tables = [[pages.pop() for _ in range(count)] for count in counts]
    batch = make_batch(query_lens, seq_lens, tables, page_size=page_size, device=DEVICE)
    num_pages = sum(counts) + 2
    paged = PagedKVCache([spec], num_pages=num_pages, page_size=page_size, dtype=cache_dtype or dtype, device=DEVICE)
    cache = paged.layer(0)
    cache.key_pages.fill_(float("nan"))
    cache.value_pages.fill_(float("nan"))
    shapes = [(sum(query_lens), spec.num_heads, spec.head_dim)]
    shapes += [(sum(seq_lens), spec.num_kv_heads, size) for size in (spec.head_dim, spec.output_dim)]
    q, k, v = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)
    cache.write(k, v, make_batch(seq_lens, seq_lens, tables, page_size=page_size, device=DEVICE).slot_mapping)
    if spec.window is not None:
        for row, (count, length) in enumerate(zip(query_lens, seq_lens, strict=True)):
            batch.block_tables[row, : max(0, length - count - spec.window + 1) // page_size] = -1
    out = backend.attend_cached(q, cache, batch, spec)
    stored = [part.to(cache_dtype or dtype).to(dtype) for part in (k, v)]
    expected = ReferenceAttention().attend(q, *stored, spec, query_lens=query_lens, key_lens=seq_lens)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


def test_triton_cached_equals_reference(backend, heads, reach):
    """Decode, a prompt, a chunk after a past and a chunk of several tiles in one call, for every layout and reach."""
    check_cached(backend, spec_of(heads, reach), (1, 6, 3, 37), (70, 6, 40, 50))


@pytest.mark.parametrize("head_dim", [1, 24, 64, 80])
def test_triton_takes_any_head_dim(backend, head_dim):
    """Head dims that are no powers of two, or smaller than a tile, are padded."""
    check_cached(backend, spec_of((4, 2), head_dim=head_dim), (1, 5), (20, 9))


@pytest.mark.parametrize("page_size", [16, 32, 128])
def test_triton_takes_any_page_size(backend, page_size):
    """Pages smaller and larger than a block of keys."""
    check_cached(backend, spec_of((6, 2), (True, 50)), (1, 5, 3), (200, 9, 130), page_size=page_size)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_triton_takes_every_dtype(backend, dtype):
    """Every dtype of queries, over a cache of its own and of another dtype."""
    check_cached(backend, spec_of((9, 3), head_dim=64), (1, 5), (40, 9), dtype=dtype)
    check_cached(backend, spec_of((9, 3), head_dim=64), (1, 5), (40, 9), dtype=dtype, cache_dtype=torch.float16)


def test_triton_takes_values_of_another_size(backend):
    """Values smaller than keys, as in latent attention's expanded form."""
    q, k, v = torch.randn(5, 4, 24), torch.randn(9, 2, 24), torch.randn(9, 2, 8)
    spec = spec_of((4, 2), head_dim=24, value_dim=8)
    out = backend.attend(*(part.to(DEVICE) for part in (q, k, v)), spec, query_lens=(1, 4), key_lens=(4, 5))
    expected = ReferenceAttention().attend(q, k, v, spec, query_lens=(1, 4), key_lens=(4, 5))
    torch.testing.assert_close(out.cpu(), expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("sees", [(True, None), (True, 30), (False, None)])
@pytest.mark.parametrize("shares", [2, 8])
def test_triton_joins_shares_of_the_keys(backend, sees, shares, monkeypatch):
    """Keys dealt out to several programs give the reference's numbers, where some get none."""
    monkeypatch.setattr(backend_module, "_num_shares", lambda _programs, _span: shares)
    check_cached(backend, spec_of((9, 3), sees), (1, 1, 4), (150, 3, 70))


@pytest.mark.parametrize(
    "programs, span, shares",
    [(1, 100, 1), (1, 1024, 2), (3, 4096, 8), (1, 10**6, 16), (200, 10**6, 2), (300, 10**6, 1)],
)
def test_triton_shares_keys_where_it_pays(programs, span, shares):
    """Keys are dealt out where they are many and the programs few, never into shares too small for one."""
    assert backend_module._num_shares(programs, span) == shares


def test_triton_attend_equals_reference(backend, reach, ragged):
    """Packed sequences without a cache, ragged, cross lengths and empty ones included."""
    spec = spec_of((4, 2), reach)
    generator = torch.Generator().manual_seed(1)
    for query_lens, key_lens in ragged:
        if sum(key_lens) > 100 and not ON_GPU:
            continue  # the interpreter takes seconds for these
        q = torch.randn(sum(query_lens), 4, 16, generator=generator).to(DEVICE)
        k, v = (torch.randn(sum(key_lens), 2, 16, generator=generator).to(DEVICE) for _ in range(2))
        out = backend.attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
        expected = ReferenceAttention().attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
        torch.testing.assert_close(out, expected, atol=4e-6, rtol=4e-6)


def test_triton_takes_views_of_a_merged_projection(backend):
    """Queries may be a strided view, as a merged projection gives them."""
    spec = spec_of((4, 2))
    merged, k = torch.randn(5, 8, 16, device=DEVICE), torch.randn(5, 2, 16, device=DEVICE)
    lens = {"query_lens": (5,), "key_lens": (5,)}
    out = backend.attend(merged[:, :4], k, k, spec, **lens)
    assert torch.equal(out, backend.attend(merged[:, :4].contiguous(), k, k, spec, **lens))


def test_triton_empty_step(backend, small_spec):
    """A step without sequences gives an empty output, and the backend satisfies the contract."""
    assert isinstance(backend, AttentionBackend)
    cache = PagedKVCache([small_spec], num_pages=1, dtype=torch.float32, device=DEVICE).layer(0)
    batch = make_batch([], [], [], page_size=16, device=DEVICE)
    out = backend.attend_cached(torch.empty(0, 4, 8, device=DEVICE), cache, batch, small_spec)
    assert out.shape == (0, 4, 8)


@pytest.mark.parametrize("page_size", [8, 24])
def test_triton_refuses_other_page_sizes(backend, small_spec, page_size):
    """A page size that the kernel cannot divide is an error that names it."""
    cache = PagedKVCache([small_spec], num_pages=1, page_size=page_size, dtype=torch.float32, device=DEVICE).layer(0)
    batch = make_batch([1], [1], page_size=page_size, device=DEVICE)
    with pytest.raises(UnsupportedError, match=f"page size that is a power of two from 16 on, got {page_size}"):
        backend.attend_cached(torch.zeros(1, 4, 8, device=DEVICE), cache, batch, small_spec)


def test_triton_refuses_dtypes_and_devices(backend, small_spec):
    """What the kernel has no form for is an error that names it."""
    q, k = torch.zeros(1, 4, 8, device=DEVICE), torch.zeros(1, 2, 8, device=DEVICE)
    lens = {"query_lens": (1,), "key_lens": (1,)}
    with pytest.raises(UnsupportedError, match=r"float32, float16 or bfloat16, not torch.float64"):
        backend.attend(q.double(), k.double(), k.double(), small_spec, **lens)
    with pytest.raises(UnsupportedError, match="not on meta"):
        backend.attend(q.to("meta"), k.to("meta"), k.to("meta"), small_spec, **lens)
    cache = PagedKVCache([small_spec], num_pages=1, page_size=16, dtype=torch.float64, device=DEVICE).layer(0)
    with pytest.raises(UnsupportedError, match=r"reads caches in float32, float16 or bfloat16, not torch.float64"):
        backend.attend_cached(q, cache, make_batch([1], [1], page_size=16, device=DEVICE), small_spec)


@pytest.mark.skipif(ON_GPU, reason="this machine has a GPU")
def test_triton_without_a_gpu_is_refused(monkeypatch):
    """Without a GPU and without the interpreter, asking for it is an error that says what to use."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedError, match=r"the triton backend needs an NVIDIA GPU.*use the sdpa backend"):
        get_backend("triton")


@pytest.mark.parametrize(
    "failure, expected, message",
    [
        (ModuleNotFoundError("No module", name="triton"), MissingDependencyError, "which is not installed"),
        (ModuleNotFoundError("No module", name="numpy"), BrokenDependencyError, "cannot be used: No module"),
        (OSError("libtriton.so:\ntoo short"), BrokenDependencyError, "cannot be used: libtriton.so: too short"),
    ],
)
def test_triton_missing_and_broken_are_different(failure, expected, message, monkeypatch):
    """Not installed and not importable are different errors, each on one line."""

    def fail(_name):
        raise failure

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend_module, "import_module", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(expected, match=message):
        TritonAttention()


def test_triton_is_imported_only_when_asked_for():
    """Importing the package and its backend's module defines no kernel."""
    code = "import sys, inference_pio.attention._triton; print('inference_pio.attention._triton_kernel' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"


@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU: too large for the interpreter")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sees", [(True, None), (True, 700), (False, None)])
def test_triton_large_batch_on_a_gpu(backend, sees, dtype):
    """Long prompts, long decodes and their mix, of the sizes that a GPU serves."""
    for query_lens, seq_lens in (((1000,), (1000,)), ((1,), (9000,)), ((1, 700, 33, 1), (3000, 700, 2000, 1))):
        check_cached(backend, spec_of((32, 8), sees, head_dim=128), query_lens, seq_lens, dtype=dtype)
