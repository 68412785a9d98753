"""FlashAttention-2: its two kinds of absence, how arguments are mapped, and on a GPU the kernel itself."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from inference_pio.attention import FlashAttention2, PagedKVCache, ReferenceAttention, _flash_attention2, make_batch
from inference_pio.interfaces import (
    AttentionSpec,
    BrokenDependencyError,
    MissingDependencyError,
    UnsupportedError,
)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    """The documented meaning of flash-attn 2.8's function, query by query: bottom-right aligned, inclusive windows."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert q.dtype == k.dtype == v.dtype
    assert dropout_p == 0.0
    out = torch.zeros_like(q)
    for b in range(len(cu_seqlens_q) - 1):
        start_q, end_q = int(cu_seqlens_q[b]), int(cu_seqlens_q[b + 1])
        start_k, end_k = int(cu_seqlens_k[b]), int(cu_seqlens_k[b + 1])
        t, s = end_q - start_q, end_k - start_k
        assert t <= max_seqlen_q
        assert s <= max_seqlen_k
        if block_table is None:
            keys, values = k[start_k:end_k], v[start_k:end_k]
        else:
            assert block_table.dtype == torch.int32
            assert k.shape[1] % 256 == 0
            pages = [int(page) for page in block_table[b]]
            assert min(pages) >= 0
            keys, values = (torch.cat([x[page] for page in pages])[:s] for x in (k, v))
        left, right = window_size
        right = 0 if causal else right
        for i in range(t):
            p = i + s - t
            low = 0 if left < 0 else max(0, p - left)
            high = s if right < 0 else min(s, p + right + 1)
            if low < high:
                group = q.shape[1] // k.shape[-2]
                heads = keys[low:high].repeat_interleave(group, dim=1).float()
                weights = torch.einsum("hd,shd->hs", q[start_q + i].float(), heads).mul(softmax_scale).softmax(-1)
                mixed = torch.einsum("hs,shd->hd", weights, values[low:high].repeat_interleave(group, dim=1).float())
                out[start_q + i] = mixed.to(q.dtype)
    return out


@pytest.fixture
def flash(monkeypatch) -> FlashAttention2:
    """The backend over a stand-in for flash-attn that computes on a CPU."""
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_flash_attention2, "_check_device", lambda _: None)
    return FlashAttention2()


def check_packed_grid(backend, heads, reach, dtype, tolerance, ragged, make_qkv, assert_close, device="cpu"):
    spec = AttentionSpec(num_heads=heads[0], num_kv_heads=heads[1], head_dim=16, causal=reach[0], window=reach[1])
    for query_lens, key_lens in ragged:
        q, k, v = (x.to(device) for x in make_qkv(spec, sum(query_lens), sum(key_lens), dtype))
        out = backend.attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
        expected = ReferenceAttention().attend(q, k, v, spec, query_lens=query_lens, key_lens=key_lens)
        assert_close(out, expected, tolerance, f"{query_lens}, {key_lens}")


def check_cached(backend, reach, dtype, tolerance, make_qkv, fill, device="cpu"):
    spec = AttentionSpec(num_heads=8, num_kv_heads=2, head_dim=16, scale=0.2, causal=reach[0], window=reach[1])
    query_lens, seq_lens = (1, 6, 3), (600, 6, 300)
    batch = make_batch(query_lens, seq_lens, [[5, 0, 3], [6], [1, 4]], page_size=256, device=device)
    q, k, v = (x.to(device) for x in make_qkv(spec, sum(query_lens), sum(seq_lens), dtype))
    cache = PagedKVCache([spec], num_pages=7, page_size=256, dtype=dtype, device=device).layer(0)
    fill(cache, batch, k, v, 256)
    out = backend.attend_cached(q, cache, batch, spec)
    expected = ReferenceAttention().attend(q, k, v, spec, query_lens=query_lens, key_lens=seq_lens)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


SHORT = [((1,), (9,)), ((5,), (12,)), ((6, 1, 3), (6, 20, 11)), ((4, 0, 2), (9, 3, 2)), ((3, 5), (3, 2)), ((), ())]


class TestArgumentMapping:
    def test_packed(self, flash, heads, reach, make_qkv, assert_close):
        """Lengths, causality, window and scale reach the function so that it computes the reference."""
        check_packed_grid(flash, heads, reach, torch.float16, 2e-3, SHORT, make_qkv, assert_close)

    def test_cached(self, flash, reach, make_qkv, fill):
        """The cache is handed over in place, with block tables free of -1."""
        check_cached(flash, reach, torch.bfloat16, 2e-2, make_qkv, fill)

    def test_empty_cached_batch(self, flash, small_spec):
        """A step without sequences never reaches the kernel."""
        cache = PagedKVCache([small_spec], num_pages=1, page_size=256, dtype=torch.bfloat16).layer(0)
        batch = make_batch([], [], [], page_size=256)
        q = torch.empty(0, 4, 8, dtype=torch.bfloat16)
        assert flash.attend_cached(q, cache, batch, small_spec).shape == (0, 4, 8)


class TestRefusals:
    @pytest.mark.parametrize("page_size", [16, 128, 384])
    def test_page_size(self, flash, page_size, small_spec):
        """Pages must be a multiple of 256 tokens."""
        cache = PagedKVCache([small_spec], num_pages=1, page_size=page_size, dtype=torch.float16).layer(0)
        q = torch.zeros(1, 4, 8, dtype=torch.float16)
        with pytest.raises(UnsupportedError, match=rf"multiple of 256 tokens, got {page_size} \(make the cache with"):
            flash.attend_cached(q, cache, make_batch([1], [1], page_size=page_size), small_spec)

    def test_cache_dtype(self, flash, small_spec):
        """The kernel reads the cache in place, so its dtype must be that of the queries."""
        cache = PagedKVCache([small_spec], num_pages=1, page_size=256, dtype=torch.float16).layer(0)
        q = torch.zeros(1, 4, 8, dtype=torch.bfloat16)
        with pytest.raises(UnsupportedError, match=r"dtype of the queries, torch.bfloat16, got torch.float16"):
            flash.attend_cached(q, cache, make_batch([1], [1], page_size=256), small_spec)

    def test_dtype(self, flash, small_spec):
        """There is no float32 kernel."""
        q, k = torch.zeros(1, 4, 8), torch.zeros(1, 2, 8)
        with pytest.raises(UnsupportedError, match=r"float16 or bfloat16, not torch.float32"):
            flash.attend(q, k, k, small_spec, query_lens=(1,), key_lens=(1,))

    @pytest.mark.parametrize("head_dim", [12, 264])
    def test_head_dim(self, flash, head_dim):
        """Head dims are multiples of 8 up to 256."""
        spec = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=head_dim)
        q = torch.zeros(1, 1, head_dim, dtype=torch.float16)
        with pytest.raises(UnsupportedError, match=f"multiple of 8 up to 256, got {head_dim}"):
            flash.attend(q, q, q, spec, query_lens=(1,), key_lens=(1,))

    def test_cpu_tensor(self, monkeypatch, flash, small_spec):
        """A tensor on a CPU is refused before the kernel sees it."""
        monkeypatch.undo()
        q, k = torch.zeros(1, 4, 8).half(), torch.zeros(1, 2, 8).half()
        with pytest.raises(UnsupportedError, match=r"on CUDA devices, not on cpu \(use sdpa there\)"):
            flash.attend(q, k, k, small_spec, query_lens=(1,), key_lens=(1,))


def refuse_flash_attn(name, *_):
    if name == "flash_attn":
        raise ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")


class TestAbsence:
    @pytest.fixture(autouse=True)
    def forget_flash_attn(self, monkeypatch):
        for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
            monkeypatch.delitem(sys.modules, name)

    @pytest.fixture
    def install(self, monkeypatch, tmp_path):
        """Put a flash_attn package with this __init__.py first on the path."""

        def write(source: str) -> None:
            (tmp_path / "flash_attn").mkdir()
            (tmp_path / "flash_attn" / "__init__.py").write_text(source)
            monkeypatch.syspath_prepend(tmp_path)

        return write

    def test_not_installed(self, monkeypatch):
        """Not installed: the error carries the pip line."""
        absent = SimpleNamespace(find_spec=refuse_flash_attn)
        monkeypatch.setattr(sys, "meta_path", [absent, *sys.meta_path])
        with pytest.raises(
            MissingDependencyError, match=r'not installed .*pip install .*"pio-attention\[flash-attn\]"'
        ):
            FlashAttention2()

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("import flash_attn_2_cuda", "No module named 'flash_attn_2_cuda'"),
            ("raise ImportError('undefined symbol:\\n _ZN3c10')", "undefined symbol: _ZN3c10"),
            ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12: cannot open"),
            ("", "has no attribute 'flash_attn_varlen_func'"),
        ],
        ids=["no extension", "wrong torch", "no CUDA library", "another flash_attn"],
    )
    def test_installed_but_broken(self, install, source, reason):
        """Installed but broken: a different error, with the reason on one line."""
        install(source)
        with pytest.raises(BrokenDependencyError, match=f"is installed but cannot be used: .*{reason}") as caught:
            FlashAttention2()
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
    def test_no_cuda_device(self, install):
        """Installed and importable, but no GPU: unsupported here, and what to use instead."""
        install("def flash_attn_varlen_func(): ...")
        with pytest.raises(UnsupportedError, match=r"needs an NVIDIA GPU, and torch sees none \(use the sdpa backend"):
            FlashAttention2()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention-2 runs on CUDA devices only")
class TestKernel:
    @pytest.fixture
    def kernel(self) -> FlashAttention2:
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
        return FlashAttention2()

    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
    def test_packed(self, kernel, heads, reach, kind, ragged, make_qkv, assert_close):
        """The kernel gives the reference's numbers over the whole grid."""
        check_packed_grid(kernel, heads, reach, kind, 2e-2, ragged, make_qkv, assert_close, device="cuda")

    def test_cached(self, kernel, reach, make_qkv, fill):
        """The kernel reads scattered pages through the block tables."""
        check_cached(kernel, reach, torch.bfloat16, 2e-2, make_qkv, fill, device="cuda")
