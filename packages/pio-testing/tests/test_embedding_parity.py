"""Parity of embeddings accepts a sound engine and model, and catches what is wrong with either."""

import numpy as np
import pytest

from inference_pio.core._pooling import Pool
from inference_pio.testing import ParityError, check_embedding_parity, load_gguf_reference, load_reference, write_gguf


@pytest.mark.parametrize("executor", ["torch", "native"])
def test_embeddings_of_a_sound_model(checkpoint, executor):
    """Every prompt counts, and the reference's entries are of order one."""
    report = check_embedding_parity(checkpoint, executor=executor)
    assert report.tokens == 1 + 2 + 17 + 40 + 96
    assert report.spread > 0.5
    assert 0 < report.max_abs_error < 2e-5


def test_prompts_are_cut_to_a_short_context(tiny_checkpoint):
    """A model of 32 positions gets none longer."""
    short = tiny_checkpoint("llama", max_position_embeddings=32)
    assert check_embedding_parity(short).tokens == 1 + 2 + 17 + 32 + 32


def test_embeddings_of_another_model(tiny_checkpoint, checkpoint):
    """A model of other weights has other embeddings, which do not even point the same way."""
    other = load_reference(tiny_checkpoint("llama", seed=1))
    with pytest.raises(ParityError, match=r"mean embeddings of .*, torch executor, entries: off by .* is 0 of 5"):
        check_embedding_parity(checkpoint, reference=other)
    with pytest.raises(ParityError, match=r"mean embeddings of .*, torch executor, direction: off by .* is 0 of 5"):
        check_embedding_parity(checkpoint, reference=other, on="direction", tolerance=0.5)


def test_the_direction_of_quantised_weights(tiny_checkpoint, tmp_path):
    """Entries are off by the rounding of inputs, which the cosine hardly sees."""
    path = write_gguf(tiny_checkpoint("llama"), tmp_path / "tiny.gguf", encoding="Q8_0")
    reference = load_gguf_reference(path)
    with pytest.raises(ParityError, match=r"mean embeddings of tiny\.gguf, native executor, entries"):
        check_embedding_parity(path, reference=reference, executor="native")
    report = check_embedding_parity(path, reference=reference, executor="native", tolerance=1e-3, on="direction")
    assert 0 < report.max_abs_error < 1e-3


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_pooling_that_takes_a_row_twice(checkpoint, monkeypatch, pooling):
    """The engine's pooling is held to transformers too, each kind of it."""
    take = Pool.take

    def again(self, rows):
        take(self, rows)
        if len(rows) and self.reads_all == (pooling == "mean"):
            self._sum += rows[-1]

    monkeypatch.setattr(Pool, "take", again)
    with pytest.raises(ParityError, match=f"{pooling} embeddings of .*, entries"):
        check_embedding_parity(checkpoint)


def test_a_normalised_embedding_of_another_length(checkpoint, monkeypatch):
    """By the largest entry instead of the norm: what is not normalised is still right."""
    embedding = Pool.embedding

    def by_the_largest(self):
        vector = embedding(self)
        return vector / np.abs(vector).max() if self._params.normalize else vector

    monkeypatch.setattr(Pool, "embedding", by_the_largest)
    with pytest.raises(ParityError, match=r"mean embeddings of .*, normalised: off by"):
        check_embedding_parity(checkpoint)
