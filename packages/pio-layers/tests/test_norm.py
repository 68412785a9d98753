"""RMSNorm against the modules of transformers: the same bits, since both round at the same places."""

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from inference_pio.layers import RMSNorm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0, 64), (1, 64), (1, 576), (7, 96), (5, 3, 64), (2, 1), (64, 640)]
FORMS = [(False, LlamaRMSNorm), (True, Gemma3RMSNorm)]


def pair(unit_offset, reference, size, dtype, rng, eps=1e-5):
    weight = torch.randn(size, generator=rng).to(dtype)
    ours, theirs = RMSNorm(size, eps=eps, unit_offset=unit_offset), reference(size, eps=eps)
    for module in (ours, theirs):
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return ours, theirs


@pytest.mark.parametrize("unit_offset, reference", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rmsnorm_equals_transformers_bit_for_bit(unit_offset, reference, dtype, shape, rng):
    """Every dtype and shape gives the very numbers of the reference module."""
    ours, theirs = pair(unit_offset, reference, shape[-1], dtype, rng)
    x = (3 * torch.randn(shape, generator=rng)).to(dtype)
    with torch.inference_mode():
        out = ours(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out, theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("unit_offset, reference", FORMS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 6e4])
def test_rmsnorm_half_precision_squares_neither_overflow_nor_vanish(unit_offset, reference, scale, rng):
    """The mean square is taken in float32, where the square of a large float16 still fits."""
    ours, theirs = pair(unit_offset, reference, 64, torch.float16, rng)
    x = (scale * torch.rand(3, 64, generator=rng)).to(torch.float16)
    out = ours(x)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, theirs(x), rtol=0, atol=0)


def test_rmsnorm_forms_differ_in_rounding(rng):
    """Multiplying before or after the cast is not the same in bfloat16: a guard against merging the two forms."""
    plain, offset = RMSNorm(64, eps=1e-6), RMSNorm(64, eps=1e-6, unit_offset=True)
    weight = torch.randn(64, generator=rng).to(torch.bfloat16)
    plain.weight = torch.nn.Parameter(weight + 1)
    offset.weight = torch.nn.Parameter(weight + 1 - 1)
    x = torch.randn(64, 64, generator=rng).to(torch.bfloat16)
    assert (plain(x) != offset(x)).any()
    torch.testing.assert_close(plain(x), offset(x), rtol=0.02, atol=0.02)


def test_rmsnorm_takes_any_strides_and_leaves_its_input(rng):
    """A transposed view gives what its copy gives, and the input keeps its values."""
    norm = RMSNorm(16, eps=1e-6)
    x = torch.randn(16, 5, generator=rng).t()
    before = x.clone()
    torch.testing.assert_close(norm(x), norm(x.contiguous()), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("unit_offset, start", [(False, 1.0), (True, 0.0)])
def test_rmsnorm_starts_as_the_identity_scale(unit_offset, start):
    """A fresh norm scales by one in both forms, and says what it is."""
    norm = RMSNorm(8, eps=1e-6, unit_offset=unit_offset)
    assert torch.equal(norm.weight, torch.full((8,), start))
    assert repr(norm) == f"RMSNorm(8, eps=1e-06, unit_offset={unit_offset})"
