"""Linear layers: the dense method against PyTorch's own product, and the seam for other methods."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from inference_pio.interfaces import LinearMethod
from inference_pio.layers import DenseLinear, Linear

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
INPUTS = [(0, 48), (1, 48), (3, 48), (65, 48), (2, 3, 48), (48,)]


def filled(layer, dtype, rng):
    for name, parameter in list(layer.named_parameters()):
        value = 0.1 * torch.randn(parameter.shape, generator=rng)
        setattr(layer, name, nn.Parameter(value.to(dtype), requires_grad=False))
    return layer


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", INPUTS)
def test_dense_linear_equals_functional_linear(mode, dtype, bias, shape, rng):
    """Whatever product is taken underneath, values, shape and dtype are those of ``functional.linear``."""
    layer = filled(Linear(48, 33, bias=bias), dtype, rng)
    x = torch.randn(shape, generator=rng).to(dtype)
    with mode():
        out = layer(x)
        expected = functional.linear(x, layer.weight, layer.bias)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@torch.inference_mode()
def test_dense_linear_takes_strided_inputs_and_weights(rng):
    """Views of larger tensors multiply as their copies do."""
    method, x, weight = DenseLinear(), torch.randn(6, 40, generator=rng), torch.randn(24, 40, generator=rng)
    for rows, matrix in [(x[::2, 4:20], weight[:, 4:20]), (x.t(), weight[:, :6]), (x[:, :24], weight.t()[:7])]:
        torch.testing.assert_close(
            method.product(rows, matrix), rows.contiguous() @ matrix.contiguous().t(), rtol=1e-5, atol=1e-5
        )


def test_dense_linear_refuses_mixed_dtypes(rng):
    """A weight of another dtype is an error rather than a silent conversion."""
    with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
        DenseLinear().product(torch.randn(2, 8), torch.randn(4, 8).to(torch.bfloat16))


def test_dense_linear_has_gradients_where_they_are_wanted(rng):
    """Outside inference the layer trains like any other."""
    layer = Linear(8, 4, bias=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=rng)
    x = torch.randn(3, 8, generator=rng, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(3, 8))
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(4, 8))


def test_linear_registers_its_parameters_on_the_default_device():
    """On ``meta`` a layer costs nothing, and its parameters have the names that checkpoints use."""
    with torch.device("meta"):
        layer = Linear(4096, 11008, bias=True)
    shapes = {name: (tuple(p.shape), p.device.type) for name, p in layer.named_parameters()}
    assert shapes == {"weight": ((11008, 4096), "meta"), "bias": ((11008,), "meta")}
    assert [name for name, _ in Linear(4, 4).named_parameters()] == ["weight"]


class Doubled:
    """A method that stores half of the weight, as a quantised one stores its codes."""

    name = "doubled"

    def create(self, layer, in_features, out_features, *, bias, dtype):  # noqa: ARG002 - the contract
        layer.weight = nn.Parameter(torch.ones(out_features, in_features, dtype=dtype) / 2)
        layer.scale = nn.Parameter(torch.tensor(2.0))

    def apply(self, layer, x):
        return functional.linear(x, layer.weight * layer.scale)


def test_linear_stores_and_multiplies_by_its_method(rng):
    """The layer leaves storage and product to the method."""
    layer = Linear(5, 3, method=Doubled())
    assert isinstance(layer.method, LinearMethod)
    assert isinstance(DenseLinear(), LinearMethod)
    assert DenseLinear().name == "dense"
    x = torch.randn(2, 5, generator=rng)
    torch.testing.assert_close(layer(x), x.sum(-1, keepdim=True).expand(2, 3))
    assert repr(layer) == "Linear(5, 3, method=doubled)"
