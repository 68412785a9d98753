"""Texts that must not come, as token sequences."""

from __future__ import annotations

import pytest

from inference_pio.core._bad_words import bad_word_sequences
from inference_pio.interfaces import InvalidRequestError


class Letters:
    """A token per letter, and one for a space together with the letter after it; digits have no token."""

    def encode(self, text, *, add_special_tokens=True):
        ids = [0] if add_special_tokens else []
        for index, letter in enumerate(text):
            if letter != " " and not letter.isdigit():
                ids.append(ord(letter) + (1000 if index and text[index - 1] == " " else 0))
        return ids


def test_words_begin_a_text_or_follow_a_space():
    """Each word has both spellings, without the tokens around a text; its own leading spaces change nothing."""
    both = ((97, 98), (1097, 98))
    assert bad_word_sequences(Letters(), ["ab"]) == both
    assert bad_word_sequences(Letters(), ["  ab"]) == both
    assert bad_word_sequences(Letters(), ["ab", " ab", "c"]) == (*both, (99,), (1099,))
    assert bad_word_sequences(Letters(), []) == ()


def test_a_word_without_tokens_is_refused():
    """A word that can be forbidden by nothing is the request's mistake."""
    with pytest.raises(InvalidRequestError, match=r"bad word '12' has no tokens.*leave it out"):
        bad_word_sequences(Letters(), ["ab", "12"])


def test_a_real_tokenizer_spells_both():
    """With the default model's tokenizer, what is forbidden decodes to the word, bare and after a space."""
    testing = pytest.importorskip("inference_pio.testing", reason="finds the default model")
    processing = pytest.importorskip("inference_pio.processing", reason="reads its tokenizer")
    weights = pytest.importorskip("inference_pio.weights", reason="opens its file")
    path = testing.find_default_model()
    if path is None:
        pytest.skip("the default model is not installed")
    tokenizer = processing.tokenizer_from_gguf(weights.open_weights(path).metadata)
    words = ["London", " unbelievably", "<|im_end|>", "naïve"]
    sequences = bad_word_sequences(tokenizer, words)
    texts = {tokenizer.decode(list(sequence), skip_special_tokens=False) for sequence in sequences}
    assert texts == {text for word in words for text in (word.strip(), " " + word.strip())}
    assert (tokenizer.token_to_id("<|im_end|>"),) in sequences
