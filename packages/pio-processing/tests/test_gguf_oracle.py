"""Tokenizers from GGUF metadata, against llama.cpp."""

import json
import runpy
import unicodedata

import pytest

from inference_pio.processing import tokenizer_from_gguf


def differences(ours, theirs, strings, **flags):
    """The strings on which the two disagree."""
    return [
        (text, ours.encode(text, **flags), theirs.encode(text, **flags))
        for text in strings
        if ours.encode(text, **flags) != theirs.encode(text, **flags)
    ]


@pytest.fixture(scope="module")
def smollm2_llama_cpp(llama_cpp, smollm2_path):
    return llama_cpp(smollm2_path)


def test_the_fixture_is_what_its_generator_makes(odd_strings):
    """The committed strings are those that the generator makes today."""
    from pathlib import Path

    generator = Path(__file__).with_name("data") / "generate_odd_strings.py"
    assert runpy.run_path(str(generator))["odd_strings"]() == odd_strings
    assert len(odd_strings) >= 300
    assert json.loads(json.dumps(odd_strings)) == odd_strings


@pytest.mark.parametrize("parse_special", [False, True])
@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_real_vocabulary_encodes_as_llama_cpp(
    smollm2, smollm2_llama_cpp, odd_strings, parse_special, add_special_tokens
):
    """Not one of the odd strings is encoded differently, with special spellings parsed or not."""
    flags = {"parse_special": parse_special, "add_special_tokens": add_special_tokens}
    assert differences(smollm2, smollm2_llama_cpp, odd_strings, **flags) == []


def test_real_vocabulary_decodes_as_llama_cpp(smollm2, smollm2_llama_cpp):
    """Every token of the vocabulary contributes the same bytes."""
    wrong = [
        token_id
        for token_id in range(smollm2.vocab_size)
        if smollm2.token_bytes(token_id) != smollm2_llama_cpp.piece(token_id)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "pre",
    [
        "default",
        "deepseek-r1-qwen",
        "gpt-2",
        "llama-bpe",
        "llama-v3",
        "llama3",
        "qwen2",
        "refact",
        "smollm",
        "starcoder",
    ],
)
@pytest.mark.parametrize("parse_special", [False, True])
def test_every_pre_tokenizer_encodes_as_llama_cpp(
    byte_level_metadata, write_vocabulary, llama_cpp, odd_strings, pre, parse_special
):
    """A small vocabulary behind each of the pre-tokenizers gives llama.cpp's ids, also at the borders of a text.

    Unicode normalisation is left out: Qwen's own tokenizer brings text to NFC, which llama.cpp does not.
    """
    metadata = byte_level_metadata(pre)
    strings = [text for text in odd_strings if unicodedata.is_normalized("NFC", text)]
    ours, theirs = tokenizer_from_gguf(metadata), llama_cpp(write_vocabulary(metadata))
    for add_special_tokens in (False, True):
        flags = {"parse_special": parse_special, "add_special_tokens": add_special_tokens}
        assert differences(ours, theirs, strings, **flags) == []


@pytest.mark.parametrize("add_bos", [None, False, True])
@pytest.mark.parametrize("add_eos", [None, False, True])
@pytest.mark.parametrize("model", ["smollm", "llama-bpe", "sentencepiece"])
def test_tokens_around_a_text_are_as_the_file_says(
    byte_level_metadata, sentencepiece_metadata, write_vocabulary, llama_cpp, model, add_bos, add_eos
):
    """``add_bos_token`` and ``add_eos_token`` count; without them the defaults are llama.cpp's."""
    flags = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    given = {key: value for key, value in flags.items() if value is not None}
    metadata = sentencepiece_metadata(**given) if model == "sentencepiece" else byte_level_metadata(model, **given)
    ours, theirs = tokenizer_from_gguf(metadata), llama_cpp(write_vocabulary(metadata))
    for text in ("", "The end", "<s>the"):
        expected = theirs.encode(text, add_special_tokens=True, parse_special=True)
        assert ours.encode(text) == expected
    assert ours.encode("The end", add_special_tokens=False) == theirs.encode("The end")


@pytest.mark.parametrize("add_space_prefix", [None, True, False])
@pytest.mark.parametrize("parse_special", [False, True])
def test_sentencepiece_encodes_as_llama_cpp(
    sentencepiece_metadata, write_vocabulary, llama_cpp, odd_strings, add_space_prefix, parse_special
):
    """Merges recovered from scores, byte fallback and the leading space give llama.cpp's ids."""
    given = {} if add_space_prefix is None else {"add_space_prefix": add_space_prefix}
    metadata = sentencepiece_metadata(**given)
    ours, theirs = tokenizer_from_gguf(metadata), llama_cpp(write_vocabulary(metadata))
    flags = {"parse_special": parse_special, "add_special_tokens": True}
    assert differences(ours, theirs, odd_strings, **flags) == []


def test_sentencepiece_decodes_as_llama_cpp(sentencepiece_metadata, write_vocabulary, llama_cpp):
    """Every token but the special ones contributes the same bytes."""
    metadata = sentencepiece_metadata(add_space_prefix=False)
    ours, theirs = tokenizer_from_gguf(metadata), llama_cpp(write_vocabulary(metadata))
    wrong = [
        (token_id, ours.token_bytes(token_id), theirs.piece(token_id))
        for token_id in range(ours.vocab_size)
        if token_id not in ours.special_ids and ours.token_bytes(token_id) != theirs.piece(token_id)
    ]
    assert wrong == []
