"""Embeddings equal transformers' pooled hidden states on tiny random checkpoints, on both executors."""

import numpy as np
import pytest

from inference_pio.core import LLM
from inference_pio.testing import load_gguf_reference, load_reference, reference_hidden_states, write_gguf

VARIANTS = {
    "gqa": {},
    "mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
}
EXECUTORS = {
    "torch": {"executor": "torch", "dtype": "float32"},
    "native": {"executor": "native", "kv_cache_dtype": "float32"},
}
LENGTHS = (1, 2, 17, 40, 96)  # ragged; with 24 tokens per step also in chunks, beside each other


def embed(path, *, pooling="mean", normalize=False, **options):
    """Prompts of each length, and their embeddings."""
    rng = np.random.default_rng(0)
    with LLM(path, max_num_seqs=4, max_num_batched_tokens=24, **options) as llm:
        prompts = [rng.integers(0, llm.shape.vocab_size, length).tolist() for length in LENGTHS]
        outputs = llm.embed(prompts, pooling=pooling, normalize=normalize)
    assert [output.prompt_token_ids for output in outputs] == prompts
    return prompts, np.array([output.embedding for output in outputs])


def expected(reference, prompts, pooling):
    """What transformers' model gives for each alone."""
    states = [reference_hidden_states(reference, prompt).double().numpy() for prompt in prompts]
    return np.array([rows.mean(axis=0) if pooling == "mean" else rows[-1] for rows in states])


def cosines(ours, theirs):
    return (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_equal_transformers(tiny_checkpoint, variant, executor, pooling):
    """Float32 vectors, not normalised, agree within 2e-5 of entries of order one."""
    folder = tiny_checkpoint("llama", **VARIANTS[variant])
    prompts, ours = embed(folder, pooling=pooling, **EXECUTORS[executor])
    theirs = expected(load_reference(folder), prompts, pooling)
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_normalised_embeddings_have_length_one(tiny_checkpoint, pooling):
    """And the direction of those that are not."""
    folder = tiny_checkpoint("llama")
    _, plain = embed(folder, pooling=pooling, executor="native")
    _, unit = embed(folder, pooling=pooling, normalize=True, executor="native")
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_0"])
def test_quantised_weights_cost_little_of_the_direction(tiny_checkpoint, tmp_path, encoding):
    """Products with inputs in int8 stay within a cosine of 0.999 of the same weights in float32."""
    path = write_gguf(tiny_checkpoint("llama"), tmp_path / "tiny.gguf", encoding=encoding)
    for pooling in ("mean", "last"):
        prompts, ours = embed(path, pooling=pooling, executor="native")
        assert cosines(ours, expected(load_gguf_reference(path), prompts, pooling)).min() > 0.999
