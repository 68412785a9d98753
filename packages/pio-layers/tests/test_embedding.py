"""Embedding and head, tied and not."""

import pytest
import torch
from torch import nn

from inference_pio.layers import Embedding, LMHead

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def embedding(vocab_size, hidden_size, dtype, rng):
    module = Embedding(vocab_size, hidden_size)
    module.weight = nn.Parameter(torch.randn(vocab_size, hidden_size, generator=rng).to(dtype), requires_grad=False)
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids", [[], [3], [0, 9, 9, 1]])
def test_embedding_returns_rows(dtype, ids, rng):
    """Row ``i`` is the weight's row of token ``i``; no tokens give no rows."""
    module = embedding(10, 6, dtype, rng)
    out = module(torch.tensor(ids, dtype=torch.int64))
    assert out.shape == (len(ids), 6)
    assert torch.equal(out, module.weight[ids])


@pytest.mark.parametrize("token_id", [-1, 10])
def test_embedding_refuses_ids_outside_the_vocabulary(token_id, rng):
    """An id of another vocabulary is an error, not another token."""
    with pytest.raises(IndexError, match="out of range"):
        embedding(10, 6, torch.float32, rng)(torch.tensor([token_id]))


def test_embedding_output_may_be_changed_in_place(rng):
    """The rows are copies: a model that scales them does not scale its weight."""
    module = embedding(4, 3, torch.float32, rng)
    before = module.weight.clone()
    with torch.inference_mode():
        module(torch.tensor([1, 2])).mul_(7)
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_lm_head_multiplies_by_its_weight(dtype, rows, tied, rng):
    """Logits are the products with every row of the vocabulary, with a weight of its own or the embedding's."""
    words = embedding(19, 8, dtype, rng)
    head = LMHead(8, 19, tied_to=words if tied else None)
    if not tied:
        head.weight = nn.Parameter(torch.randn(19, 8, generator=rng).to(dtype), requires_grad=False)
    hidden = torch.randn(rows, 8, generator=rng).to(dtype)
    with torch.inference_mode():
        logits = head(hidden)
    assert (logits.shape, logits.dtype) == ((rows, 19), dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    expected = hidden.double() @ head.weight.double().t()
    torch.testing.assert_close(logits.double(), expected, rtol=tolerance, atol=tolerance)


def test_lm_head_shares_the_embedding_parameter():
    """A tied head is the same parameter, so it is counted once."""
    words = Embedding(7, 3)
    model = nn.ModuleDict({"embed": words, "head": LMHead(3, 7, tied_to=words)})
    assert model["head"].weight is words.weight
    assert sum(p.numel() for p in model.parameters()) == 21
    assert repr(model["head"]) == "LMHead(3, 7)"
    assert repr(words) == "Embedding(7, 3)"


def test_lm_head_refuses_an_embedding_of_another_shape():
    """The message names both shapes."""
    with pytest.raises(ValueError, match=r"head of shape \(8, 3\) cannot share an embedding of shape \(7, 3\)"):
        LMHead(3, 8, tied_to=Embedding(7, 3))
