"""Embeddings equal transformers' pooled hidden states on tiny random checkpoints, on both executors."""

import pytest

from inference_pio.testing import check_embedding_parity, load_gguf_reference, write_gguf

VARIANTS = {
    "gqa": {},
    "mqa-tied-biased": {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True},
    "sliding": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("executor", ["torch", "native"])
def test_embeddings_equal_transformers(tiny_checkpoint, variant, executor):
    """Float32 vectors agree within 2e-5 of entries of order one, and normalised ones point the same way."""
    report = check_embedding_parity(tiny_checkpoint("qwen3", **VARIANTS[variant]), executor=executor)
    assert report.tokens == 156
    assert report.spread > 0.5


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_0"])
def test_quantised_weights_cost_little_of_the_direction(tiny_checkpoint, tmp_path, encoding):
    """Products with inputs in int8, and keys and values in half precision, stay within a cosine of 0.999 of float32."""
    path = write_gguf(tiny_checkpoint("qwen3"), tmp_path / "tiny.gguf", encoding=encoding)
    reference = load_gguf_reference(path)
    check_embedding_parity(
        path, reference=reference, executor="native", kv_cache_dtype="auto", tolerance=1e-3, on="direction"
    )
