"""Random models in a real shape: readable by the format's own library, by us, and of sane weights."""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.benchmarks._gen_case import Case
from inference_pio.benchmarks._gen_executor import build_executor, open_model, stored_bytes
from inference_pio.benchmarks._gen_measure import measure_case
from inference_pio.benchmarks._gen_random_model import (
    SHAPES,
    RandomShape,
    q4_0_blocks,
    q8_0_blocks,
    random_model,
    write_random_model,
)
from inference_pio.interfaces import InvalidRequestError

gguf = pytest.importorskip("gguf", reason="random models are written by gguf")

SMALL = RandomShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=96,
    vocab_size=320,
    max_position=256,
)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A file of the small shape."""
    path = tmp_path_factory.mktemp("random") / "small.gguf"
    write_random_model(SMALL, path)
    return path


@pytest.mark.parametrize(("name", "blocks"), [("Q4_0", q4_0_blocks), ("Q8_0", q8_0_blocks)])
def test_drawn_blocks_decode_to_weights_of_unit_gain(name, blocks):
    """By the format's reference library: mean about 0, standard deviation about 1 over the root of the columns."""
    stored = blocks(np.random.default_rng(0), 128, 256)
    weights = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[name])
    assert weights.shape == (128, 256)
    assert abs(weights.mean()) < 0.02 / 16
    assert weights.std() == pytest.approx(1 / 16, rel=0.05)


def test_the_file_has_the_shape_and_formats(small_model):
    """Matrices are Q4_0, the embedding, which is the head, is Q8_0, norms are F32."""
    reader = gguf.GGUFReader(small_model)
    formats = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert len(formats) == 2 + 2 * 11
    names = ("token_embd.weight", "blk.1.ffn_down.weight", "blk.0.attn_q_norm.weight")
    assert [formats[name] for name in names] == ["Q8_0", "Q4_0", "F32"]
    assert reader.fields["tokenizer.ggml.model"].contents() == "no_vocab"


def test_the_file_is_a_model_of_ours(small_model):
    """It opens, has a tied head and no tokenizer, and runs."""
    checkpoint = open_model(small_model)
    assert checkpoint.shape.vocab_size == 320
    assert checkpoint.tied_head
    assert checkpoint.tokenizer() is None
    assert stored_bytes(checkpoint) == sum(checkpoint.source.info(name).nbytes for name in checkpoint.source)
    case = Case(phase="decode", tokens=2, batch=2)
    executor = build_executor(checkpoint, "torch", [case], threads=1)
    assert min(measure_case(case, executor, checkpoint, repeats=1)) > 0
    executor.close()


def test_a_random_model_is_made_once(tmp_path, monkeypatch):
    """The second call finds the file."""
    monkeypatch.setattr("inference_pio.benchmarks._gen_random_model.SHAPES", {"small": SMALL})
    told: list[str] = []
    path = random_model("small", tmp_path, told.append)
    assert random_model("small", tmp_path, told.append) == path
    assert told == ["making a random model of the shape of small"]
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["random-small-q4_0.gguf"]
    with pytest.raises(InvalidRequestError, match=r"no shape 'large' .give small"):
        random_model("large", tmp_path, told.append)


def test_the_shape_of_qwen3_reads_413_megabytes_a_token():
    """What the shape is for: 440 million weights at 18 bytes per 32, and a head of 34 bytes per 32."""
    shape = SHAPES["qwen3-0.6b"]
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.intermediate_size)
    head = shape.vocab_size * shape.hidden_size
    assert shape.num_layers * layer * 18 / 32 + head * 34 / 32 == pytest.approx(413e6, rel=0.01)
