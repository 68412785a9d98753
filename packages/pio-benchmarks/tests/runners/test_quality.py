"""Perplexity and divergence: against NumPy's and transformers' own, and zero where nothing differs."""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.benchmarks._quality import bundled_text, compare_logits, log_softmax, text_tokens
from inference_pio.interfaces import InvalidRequestError


@pytest.fixture
def logits():
    """Two sides of random logits for 7 tokens of 11, in parts of 4 and 3 rows."""
    random = np.random.default_rng(0)
    left = random.standard_normal((7, 11), dtype=np.float32)
    right = left + 0.3 * random.standard_normal((7, 11), dtype=np.float32)
    return left, right, random.integers(11, size=7).tolist()


def test_the_same_predictions_do_not_diverge(logits):
    """KL 0, full agreement, equal perplexities."""
    left, _, tokens = logits
    result = compare_logits([left], [left], tokens)
    assert result.divergence == pytest.approx(0, abs=1e-12)
    assert result.agreement.all()
    assert result.perplexity == result.reference_perplexity
    assert result.positions == 6


def test_figures_are_those_of_torch(logits):
    """torch's own cross entropy and KL divergence, over the 6 positions that have a next token."""
    torch = pytest.importorskip("torch", reason="the oracle of cross entropy and KL divergence")
    left, right, tokens = logits
    result = compare_logits([left[:4], left[4:]], [right[:4], right[4:]], tokens)
    functional = torch.nn.functional
    expected, got = (functional.log_softmax(torch.from_numpy(side[:6]).double(), dim=1) for side in (left, right))
    following = torch.tensor(tokens[1:])
    nll = functional.nll_loss(got, following)
    assert result.perplexity == pytest.approx(float(nll.exp()), rel=1e-6)
    divergence = functional.kl_div(got, expected, log_target=True, reduction="none").sum(dim=1)
    np.testing.assert_allclose(result.divergence, divergence.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(result.agreement, (left[:6].argmax(1) == right[:6].argmax(1)))


def test_log_softmax_stands_large_logits():
    """Logits of a thousand neither overflow nor lose their differences."""
    values = log_softmax(np.array([[1000.0, 999.0, -1000.0]], dtype=np.float32))
    np.testing.assert_allclose(np.exp(values).sum(axis=1), 1)
    assert values[0, 0] - values[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shape", "count", "message"), [((6, 11), 7, "logits of other shapes"), ((7, 11), 8, "8 tokens need as many rows")]
)
def test_sides_that_do_not_match_are_refused(logits, shape, count, message):
    """Other shapes, or other numbers of tokens."""
    left, _, tokens = logits
    with pytest.raises(ValueError, match=message):
        compare_logits([left], [np.zeros(shape, dtype=np.float32)], (tokens * 2)[:count])


def test_the_bundled_text_is_prose_of_a_few_kilobytes():
    """Plain ASCII, so that every vocabulary can say it."""
    text = bundled_text()
    assert 2000 < len(text) < 5000
    assert text.isascii()
    assert "Four score and seven years ago" in text


def test_a_model_without_a_tokenizer_gets_random_tokens(tiny_folder):
    """Repeatable ones, no more than its context; a text of one's own cannot be used."""
    from inference_pio.benchmarks._gen_executor import open_model

    checkpoint = open_model(tiny_folder)
    tokens = text_tokens(checkpoint, None, 600)
    assert len(tokens) == 256
    assert tokens == text_tokens(checkpoint, None, 600)
    assert max(tokens) < 131
    with pytest.raises(InvalidRequestError, match=r"has no tokenizer for a text"):
        text_tokens(checkpoint, "text", 600)
    with pytest.raises(InvalidRequestError, match=r"a prediction needs 2 tokens, got 1"):
        text_tokens(checkpoint, None, 1)


def test_float32_against_itself_is_perfect(pio_bench, tiny_folder):
    """The torch executor in float32 is the reference, so nothing may differ."""
    done = pio_bench("quality", tiny_folder, "--executor", "torch", "--dtype", "float32", "--threads", "1", "--json")
    assert done.code == 0, done.err
    figures = {each["name"]: each["values"][0] for each in done.json["results"]}
    assert figures["mean KL"] == pytest.approx(0, abs=1e-9)
    assert figures["top-1 agreement"] == 100
    assert figures["perplexity"] == pytest.approx(figures["perplexity, float32"])


def test_the_reference_is_transformers_model(pio_bench, tiny_folder):
    """Perplexity in float32 is what transformers computes of the same tokens."""
    torch = pytest.importorskip("torch", reason="transformers needs it")
    transformers = pytest.importorskip("transformers", reason="the oracle of perplexity")
    from inference_pio.benchmarks._gen_executor import open_model

    tokens = torch.tensor([text_tokens(open_model(tiny_folder), None, 100)])
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = float(model(tokens, labels=tokens).loss.exp())
    done = pio_bench("quality", tiny_folder, "--executor", "torch", "--dtype", "float32", "--tokens", "100", "--json")
    figures = {each["name"]: each["values"][0] for each in done.json["results"]}
    assert figures["perplexity, float32"] == pytest.approx(expected, rel=1e-4)


def test_a_narrower_dtype_costs_something_and_can_be_bounded(pio_bench, tiny_folder):
    """bfloat16 diverges a little; a bound below that fails, and the table is there all the same."""
    done = pio_bench("quality", tiny_folder, "--executor", "torch", "--dtype", "bfloat16", "--max-kl", "1e-9")
    assert done.code == 1
    assert "255 predictions" in done.out
    assert "the mean KL divergence is" in done.err
    assert pio_bench("quality", tiny_folder, "--executor", "torch", "--dtype", "bfloat16", "--max-kl", "1").code == 0


def test_the_native_executor_predicts_what_the_file_says(pio_bench, tiny_gguf):
    """Int8 activations cost a little, and no more than that."""
    pytest.importorskip("inference_pio.core.native_executor", reason="the installed pio-core has no native executor")
    done = pio_bench("quality", tiny_gguf, "--executor", "native", "--max-kl", "0.02", "--json")
    assert done.code == 0, done.err
    figures = {each["name"]: each["values"][0] for each in done.json["results"]}
    assert figures["top-1 agreement"] > 90


def test_a_text_that_cannot_be_read_is_named(pio_bench, tmp_path):
    """With the option."""
    done = pio_bench("quality", "--text", tmp_path / "gone.txt")
    assert done.code == 2
    assert "--text" in done.err
