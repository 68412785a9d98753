"""Logits equal transformers' on tiny random checkpoints, in every variant that the family knows."""

import pytest

from inference_pio.models.llama import PLUGIN
from inference_pio.testing import check_parity, load_gguf_reference, rope_variants, write_gguf

ROPES = rope_variants(16)

VARIANTS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "both-biases-tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "wide-heads": {"head_dim": 48},
    "odd-sizes": {"hidden_size": 60, "intermediate_size": 77, "num_attention_heads": 6, "num_key_value_heads": 3},
    "gelu": {"hidden_act": "gelu"},
    "one-layer": {"num_hidden_layers": 1},
    "large-eps": {"rms_norm_eps": 0.1},
    "large-theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "sharded": {"sharded": True},
    **{f"rope-{name}": {"rope_parameters": rope} for name, rope in ROPES.items()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(tiny_checkpoint, variant):
    """Float32 logits agree within 1e-4 of a standard deviation near 1."""
    report = check_parity(PLUGIN, tiny_checkpoint("llama", **VARIANTS[variant]))
    assert report.tokens == 96
    assert report.spread > 0.5


def test_dynamic_rope_beyond_the_trained_context(tiny_checkpoint):
    """Past the trained context the base grows with the sequence, as in the reference."""
    folder = tiny_checkpoint("llama", max_position_embeddings=32, rope_parameters=ROPES["dynamic"])
    assert check_parity(PLUGIN, folder).tokens == 96


def test_longrope_beyond_the_original_context(tiny_checkpoint):
    """Past the original context every position turns by the long factors."""
    folder = tiny_checkpoint("llama", rope_parameters=ROPES["longrope"])
    assert check_parity(PLUGIN, folder, token_ids=[5] * 65 + [6] * 20).tokens == 85


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_backends_agree_with_transformers(tiny_checkpoint, backend):
    """The choice of the attention backend does not show in the logits."""
    check_parity(PLUGIN, tiny_checkpoint("llama"), backend=backend)


def test_a_single_token(tiny_checkpoint):
    """The shortest prompt works."""
    assert check_parity(PLUGIN, tiny_checkpoint("llama"), token_ids=[3]).tokens == 1


def test_bfloat16_stays_close(tiny_checkpoint):
    """Computing in bfloat16 moves log-probabilities by rounding only."""
    folder = tiny_checkpoint("llama", dtype="bfloat16")
    report = check_parity(PLUGIN, folder, dtype="bfloat16", tolerance=0.15, on="logprobs")
    assert report.max_abs_error > 0.0


def test_bfloat16_checkpoint_in_float32_is_exact(tiny_checkpoint):
    """Widening stored bfloat16 to float32 loses nothing."""
    check_parity(PLUGIN, tiny_checkpoint("llama", dtype="bfloat16"))


GGUF_VARIANTS = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "mqa": {"num_key_value_heads": 1},
    "wide-heads": {"head_dim": 64},
    **{f"rope-{name}": {"rope_parameters": ROPES[name]} for name in ("linear", "llama3", "yarn")},
}


@pytest.mark.parametrize("variant", GGUF_VARIANTS)
def test_gguf_equals_the_checkpoint_it_was_made_from(tiny_checkpoint, tmp_path, variant):
    """Names, row order, config and rotary factors survive the other file format."""
    folder = tiny_checkpoint("llama", **GGUF_VARIANTS[variant])
    check_parity(PLUGIN, write_gguf(folder, tmp_path / "tiny.gguf"), reference=folder)


@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_block_formats(tiny_checkpoint, tmp_path, encoding):
    """Packed rows come out as the reference library unpacks them."""
    path = write_gguf(tiny_checkpoint("llama"), tmp_path / "tiny.gguf", encoding=encoding)
    check_parity(PLUGIN, path, reference=load_gguf_reference(path))
