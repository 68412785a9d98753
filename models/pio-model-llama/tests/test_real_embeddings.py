"""Embeddings of the real SmolLM2-135M-Instruct, against the same file dequantised into transformers."""

import numpy as np
import pytest

from inference_pio.core import LLM
from inference_pio.testing import load_gguf_reference, reference_hidden_states

SENTENCES = [
    "A cat sleeps on the sofa.",
    "The kitten is napping on the couch.",
    "The stock market fell sharply today.",
    "Share prices dropped on Wall Street.",
    "How do I bake bread at home?",
    "What is a good recipe for a homemade loaf?",
]
PROMPTS = [*SENTENCES, "x", "Paris is the capital of France, and Berlin that of Germany. " * 12]

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def reference(default_model_path):
    """transformers' model of the file, float32."""
    return load_gguf_reference(default_model_path)


@pytest.fixture(scope="module", params=["native", "torch"])
def model(request, default_model_path):
    """The file on either executor, reading 64 tokens per step at most."""
    options = {"native": {}, "torch": {"dtype": "float32"}}[request.param]
    with LLM(default_model_path, executor=request.param, max_num_batched_tokens=64, **options) as llm:
        yield llm


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_point_where_transformers_do(model, reference, pooling):
    """Cosines are at least 0.9995 where inputs of products are rounded to int8 and the cache to half precision."""
    outputs = model.embed(PROMPTS, pooling=pooling)
    lengths = [len(output.prompt_token_ids) for output in outputs]
    assert min(lengths) == 1
    assert max(lengths) > 2 * 64
    for output in outputs:
        states = reference_hidden_states(reference, output.prompt_token_ids).double().numpy()
        expected = states.mean(axis=0) if pooling == "mean" else states[-1]
        cosine = output.embedding @ expected / np.linalg.norm(expected)
        assert cosine > (0.9995 if model.executor == "native" else 1 - 1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_what_means_the_same_is_nearest(model, pooling):
    """Of six sentences, each is nearest to the one that says the same in other words."""
    vectors = np.array([output.embedding for output in model.embed(SENTENCES, pooling=pooling)])
    cosines = vectors @ vectors.T
    np.testing.assert_allclose(np.diagonal(cosines), 1, atol=1e-5)
    np.fill_diagonal(cosines, -1)
    assert cosines.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]
