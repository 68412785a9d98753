"""Rows that do not depend on their company: products, activations, and all that a layer does to a row, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from inference_pio.interfaces import LinearMethod, RopeParameters, UnsupportedError
from inference_pio.layers import (
    DenseLinear,
    Embedding,
    GatedMLP,
    InvariantLinear,
    Linear,
    LMHead,
    RMSNorm,
    RotaryEmbedding,
    apply_rotary,
)
from inference_pio.layers import _invariant as invariant

DTYPES = [torch.float32, torch.bfloat16]
ROWS = 150
E, F, V, HEADS, D = 64, 96, 257, 12, 16


def filled(module, dtype, std=0.3):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module.to(dtype).requires_grad_(requires_grad=False)


def norm(**options):
    return lambda dtype: (filled(RMSNorm(E, eps=1e-5, **options), dtype, 1.0), (E,))


def mlp(activation, width=F):
    return lambda dtype: (filled(GatedMLP(E, width, activation=activation, method=InvariantLinear()), dtype), (E,))


def linear(*sizes, bias=False):
    return lambda dtype: (filled(Linear(*sizes, bias=bias, method=InvariantLinear()), dtype), (sizes[0],))


def head(*, tied):
    words = Embedding(V, E) if tied else None
    return lambda dtype: (filled(LMHead(E, V, tied_to=words, method=InvariantLinear()), dtype), (E,))


def rotary(*, interleaved, size=D):
    def build(dtype):
        embedding = RotaryEmbedding(size, RopeParameters(theta=1e4), max_position=4096, interleaved=interleaved)

        def turn(x):
            positions = (x.float().abs().sum((1, 2)) * 7).long() % 4096  # a row's position must go with the row
            return apply_rotary(x, *embedding.cos_sin(positions, dtype=dtype), interleaved=interleaved)

        return turn, (HEADS, size)

    return build


OPERATIONS = {
    "linear": linear(E, F),
    "linear with bias, odd sizes": linear(E, 33, bias=True),
    "linear, many inputs": linear(1536, E),
    "mlp silu": mlp("silu"),
    "mlp gelu": mlp("gelu"),
    "mlp gelu_tanh": mlp("gelu_tanh"),
    "mlp of odd width": mlp("silu", 37),
    "head": head(tied=False),
    "tied head": head(tied=True),
    "norm": norm(),
    "norm with unit offset": norm(unit_offset=True),
    "rotary": rotary(interleaved=False),
    "rotary interleaved, odd pairs": rotary(interleaved=True, size=6),
    "log-probabilities": lambda dtype: (lambda x: x.float().log_softmax(-1), (V,)),  # noqa: ARG005 - all are built so
}


@pytest.fixture(params=[1, 2, 5], ids="{} threads".format)
def threads(request):
    """That many threads, until the test ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_row_has_the_same_bits_in_any_company(name, dtype, threads):
    """Whatever rows are before, after and beside it, and however many: a row gives the bits that it gives alone."""
    operation, shape = OPERATIONS[name](dtype)
    x = (2 * torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(2))).to(dtype)
    with torch.inference_mode():
        alone = torch.cat([operation(x[row : row + 1]) for row in range(ROWS)])
        for count in (0, 2, 3, 5, 8, 12, 16, 17, 33, 64, 149, 150):
            for start in (0, (ROWS - count) // 2, ROWS - count):
                out = operation(x[start : start + count])
                assert torch.equal(out, alone[start : start + count]), f"rows {start} .. {start + count}"


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=80), dtype=st.sampled_from(DTYPES))
def test_any_mix_of_rows_gives_each_its_own_bits(rows, dtype):
    """Rows in any order, repeated or not: the block gives each what it gives it alone."""
    block, _ = mlp("silu")(dtype)
    x = torch.randn(ROWS, E, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.inference_mode():
        assert torch.equal(block(x[rows]), torch.cat([block(x[row : row + 1]) for row in rows]))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("form", ["_paired", "_tiled"])
@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (3, 48), (65, 48), (2, 3, 48), (48,)])
def test_both_forms_multiply(form, dtype, shape, monkeypatch):
    """Both forms of the product are the product, for every shape of input."""
    method = InvariantLinear()
    monkeypatch.setattr(method, "_form", lambda _weight: getattr(method, form))
    layer = filled(Linear(48, 33, bias=True, method=method), dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    out = layer(x)
    assert (out.dtype, out.shape) == (dtype, (*shape[:-1], 33))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(out, functional.linear(x, layer.weight, layer.bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", ["_tiled", "_paired"])
@torch.inference_mode()
def test_each_form_keeps_the_promise_where_it_is_taken(form):
    """A form that the check accepts gives a row the same bits alone and in company."""
    generator = torch.Generator().manual_seed(5)
    method, weight = InvariantLinear(), torch.randn(65, 192, generator=generator)
    product = getattr(method, form)
    if not invariant._is_invariant(product, weight):
        pytest.skip(f"{form} is not row-invariant on this machine, and not taken")
    x = torch.randn(100, 192, generator=generator)
    whole = product(x, weight, None)
    for row in (0, 15, 16, 99):
        assert torch.equal(product(x[row : row + 1], weight, None), whole[row : row + 1])


def test_a_product_that_depends_on_its_company_is_refused(monkeypatch):
    """Where no form passes its check, using one is an error that says so."""
    monkeypatch.setattr(invariant.DenseLinear, "product", lambda _self, x, w, _b=None: x @ w.t() + x.mean())
    layer = filled(Linear(8, 4, method=InvariantLinear()), torch.float32)
    with pytest.raises(UnsupportedError, match=r"weight \(4, 8\) of torch.float32 on cpu gives a row the same bits"):
        layer(torch.randn(3, 8))


def test_the_check_sees_what_it_must():
    """A product whose rows depend on their number, or on their place, does not pass."""
    weight = torch.randn(4, 8)
    assert not invariant._is_invariant(lambda x, w, _b: x @ w.t() + len(x), weight)
    assert not invariant._is_invariant(lambda x, w, _b: x @ w.t() + torch.arange(len(x)).unsqueeze(1), weight)


def test_gradients_are_refused():
    """A product without a derivative does not pretend to have one."""
    layer = Linear(8, 4, method=InvariantLinear())
    nn.init.normal_(layer.weight)
    with pytest.raises(ValueError, match="have no gradient: use"):
        layer(torch.randn(3, 8))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_activations_equal_those_of_torch(name, dtype):
    """The activation is the usual one to rounding, far out as well."""
    x = torch.cat([torch.linspace(-12, 12, 1001), torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4])]).to(dtype)
    expected = {"silu": functional.silu, "gelu": functional.gelu}.get(
        name, lambda value: functional.gelu(value, approximate="tanh")
    )(x)
    out = invariant.invariant_activation(name)(x)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_unknown_invariant_activation_is_refused():
    """The message lists what there is, in this mode too."""
    with pytest.raises(ValueError, match=r"one of 'silu', 'gelu', 'gelu_tanh', got 'swish'"):
        GatedMLP(8, 16, activation="swish", method=InvariantLinear())


class Halved:
    """A method that keeps no plain matrix."""

    name = "halved"

    def create(self, layer, in_features, out_features, *, bias, dtype):  # noqa: ARG002 - the contract
        layer.weight = nn.Parameter(torch.ones(out_features, in_features // 2, dtype=dtype))

    def apply(self, layer, x):
        return x[..., ::2] @ layer.weight.t()


def test_head_stores_and_multiplies_by_its_method():
    """A head of its own leaves storage to the method; a tied one has the embedding's plain matrix."""
    own = LMHead(8, 3, tied_to=None, method=Halved())
    assert own(torch.ones(2, 8)).tolist() == [[4.0] * 3] * 2
    assert repr(own) == "LMHead(8, 3)"
    words = Embedding(3, 8)
    tied = LMHead(8, 3, tied_to=words, method=InvariantLinear())
    assert tied.weight is words.weight
    assert tied.method.name == "invariant"
    assert LMHead(8, 3, tied_to=words, method=Halved()).method.name == "dense"


def test_invariant_linear_is_a_linear_method():
    """It satisfies the contract, keeps the dense parameters, and says of itself what it promises."""
    method = InvariantLinear()
    assert isinstance(method, LinearMethod)
    assert (method.name, method.row_invariant) == ("invariant", True)
    assert not hasattr(DenseLinear(), "row_invariant")
    shapes = {name: tuple(p.shape) for name, p in Linear(5, 3, bias=True, method=method).named_parameters()}
    assert shapes == {"weight": (3, 5), "bias": (3,)}
