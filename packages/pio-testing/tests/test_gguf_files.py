"""GGUF files of tiny checkpoints, and transformers' models of GGUF files: one is the inverse of the other."""

import numpy as np
import pytest
import torch
import transformers

from inference_pio.testing import load_gguf_reference, load_reference, rope_variants, trace_reference, write_gguf
from inference_pio.testing._gguf_writer import interleave_rows, llama3_divisors, split_rows
from inference_pio.weights import open_weights

TOKENS = list(range(3, 60))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_is_exact(tiny_checkpoint, tmp_path, family, tied):
    """A float32 file gives transformers the very model that it was made from."""
    folder = tiny_checkpoint(family, tie_word_embeddings=tied)
    path = write_gguf(folder, tmp_path / "tiny.gguf")
    ours = trace_reference(load_gguf_reference(path), TOKENS)
    assert torch.equal(ours.logits, trace_reference(load_reference(folder), TOKENS).logits)


@pytest.mark.parametrize("rope", ["linear", "yarn", "llama3"])
def test_scaled_rope_needs_the_config(tiny_checkpoint, tmp_path, rope):
    """A file that scales its rotary embedding is not guessed at; with the config it is exact."""
    folder = tiny_checkpoint("llama", rope_parameters=rope_variants(16)[rope])
    path = write_gguf(folder, tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match="give the config"):
        load_gguf_reference(path)
    reference = load_reference(folder)
    ours = trace_reference(load_gguf_reference(path, config=reference.config), TOKENS)
    assert torch.equal(ours.logits, trace_reference(reference, TOKENS).logits)


def test_matrices_are_packed_and_vectors_are_not(tiny_checkpoint, tmp_path):
    """The encoding applies to matrices alone, as in published files."""
    source = open_weights(write_gguf(tiny_checkpoint("llama"), tmp_path / "tiny.gguf", encoding="Q4_1"))
    encodings = {len(source.info(name).shape): source.info(name).encoding for name in source}
    assert encodings == {1: "F32", 2: "Q4_1"}
    source.close()


def test_row_order_of_a_head():
    """Interleaved order takes a row from each half in turn, and splitting undoes it."""
    rows = np.arange(8, dtype=np.float32)
    interleaved = interleave_rows(rows, 2)
    assert interleaved.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert split_rows(interleaved, 2).tolist() == rows.tolist()
    assert interleave_rows(rows, 0) is rows
    assert split_rows(rows, 0) is rows


def test_llama3_divisors_are_those_of_transformers():
    """The stored divisors are the ratio of plain to scaled frequencies."""
    rope = rope_variants(16)["llama3"]
    sizes = {"hidden_size": 64, "num_attention_heads": 4}
    scaled = transformers.LlamaConfig(**sizes, rope_parameters=rope)
    plain = transformers.LlamaConfig(**sizes, rope_parameters=rope_variants(16)["default"])
    frequencies = [
        transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq for config in (plain, scaled)
    ]
    torch.testing.assert_close(torch.from_numpy(llama3_divisors(rope, 16)), frequencies[0] / frequencies[1])


def test_longrope_cannot_be_written(tiny_checkpoint, tmp_path):
    """What the format cannot say is refused."""
    folder = tiny_checkpoint("llama", rope_parameters=rope_variants(16)["longrope"])
    with pytest.raises(ValueError, match="GGUF cannot say rope_type 'longrope'"):
        write_gguf(folder, tmp_path / "tiny.gguf")


def test_biases_without_a_name_are_refused(tiny_checkpoint, tmp_path):
    """A family that the format does not know is refused by name."""
    folder = tiny_checkpoint("mistral")
    with pytest.raises(ValueError, match="GGUF has no architecture 'mistral'"):
        write_gguf(folder, tmp_path / "tiny.gguf")


def test_missing_tensor_is_named(tiny_checkpoint, tmp_path):
    """A file of another depth than its config says is refused."""
    folder = tiny_checkpoint("llama")
    config = load_reference(folder).config
    config.num_hidden_layers = 4
    path = write_gguf(folder, tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=r"no tensor for 'model\.layers\.3"):
        load_gguf_reference(path, config=config)
