"""Logits equal transformers' on tiny random checkpoints, in every variant that the family knows."""

import pytest

from inference_pio.models.qwen3 import PLUGIN
from inference_pio.testing import check_parity, load_gguf_reference, rope_variants, write_gguf

ROPES = rope_variants(32)
SLIDING = {"use_sliding_window": True, "sliding_window": 16}

VARIANTS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True},
    "narrow-heads": {"head_dim": 8},
    "large-eps": {"rms_norm_eps": 0.1},
    "sharded": {"sharded": True},
    "window-in-the-last-layers": {**SLIDING, "max_window_layers": 1},
    "window-by-layer-types": {
        **SLIDING,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    **{f"rope-{name}": {"rope_parameters": rope} for name, rope in ROPES.items()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(tiny_checkpoint, variant):
    """Float32 logits agree within 1e-4 of a standard deviation near 1."""
    report = check_parity(PLUGIN, tiny_checkpoint("qwen3", **VARIANTS[variant]))
    assert report.tokens == 96
    assert report.spread > 0.5


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_backends_agree_with_transformers(tiny_checkpoint, backend):
    """The choice of the attention backend does not show in the logits, sliding layers included."""
    folder = tiny_checkpoint("qwen3", **VARIANTS["window-by-layer-types"])
    check_parity(PLUGIN, folder, backend=backend)


def test_bfloat16_stays_close(tiny_checkpoint):
    """Computing in bfloat16 moves log-probabilities by rounding only."""
    folder = tiny_checkpoint("qwen3", dtype="bfloat16")
    report = check_parity(PLUGIN, folder, dtype="bfloat16", tolerance=0.15, on="logprobs")
    assert report.max_abs_error > 0.0


GGUF_VARIANTS = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    **{f"rope-{name}": {"rope_parameters": ROPES[name]} for name in ("linear", "yarn")},
}


@pytest.mark.parametrize("variant", GGUF_VARIANTS)
def test_gguf_equals_the_checkpoint_it_was_made_from(tiny_checkpoint, tmp_path, variant):
    """Names, row order, config and rotary factors survive the other file format."""
    folder = tiny_checkpoint("qwen3", **GGUF_VARIANTS[variant])
    check_parity(PLUGIN, write_gguf(folder, tmp_path / "tiny.gguf"), reference=folder)


@pytest.mark.parametrize("encoding", ["F16", "Q8_0", "Q4_0"])
def test_gguf_block_formats(tiny_checkpoint, tmp_path, encoding):
    """Packed rows come out as the reference library unpacks them."""
    path = write_gguf(tiny_checkpoint("qwen3"), tmp_path / "tiny.gguf", encoding=encoding)
    check_parity(PLUGIN, path, reference=load_gguf_reference(path))
