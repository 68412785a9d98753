"""Tokenizers from GGUF metadata: what llama.cpp has no opinion on, against transformers, and bad metadata."""

import re

import pytest

from inference_pio.interfaces import InvalidRequestError, MalformedFileError, UnsupportedError
from inference_pio.processing import tokenizer_from_gguf

G = "tokenizer.ggml."


def merges_of(metadata):
    return [tuple(merge.split(" ")) for merge in metadata[G + "merges"]]


def test_qwen2_encodes_as_transformers(byte_level_metadata, odd_strings):
    """The same vocabulary in transformers' Qwen2 tokenizer gives the same ids, Unicode normal form included."""
    transformers = pytest.importorskip("transformers", reason="transformers, the witness, is not installed")
    metadata = byte_level_metadata("qwen2")
    vocab = {token: token_id for token_id, token in enumerate(metadata[G + "tokens"])}
    theirs = transformers.Qwen2TokenizerFast(vocab=vocab, merges=merges_of(metadata))
    theirs.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    theirs.add_tokens(["<tool_call>", "  <think>"])
    ours = tokenizer_from_gguf(metadata)
    for text in odd_strings:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_llama3_encodes_as_transformers(byte_level_metadata, odd_strings):
    """The same vocabulary behind the published Llama 3 pre-tokenizer in transformers gives the same ids."""
    transformers = pytest.importorskip("transformers", reason="transformers, the witness, is not installed")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    metadata = byte_level_metadata("llama-bpe")
    vocab = {token: token_id for token_id, token in enumerate(metadata[G + "tokens"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges_of(metadata), ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    theirs.add_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    theirs.add_tokens(["<tool_call>", "  <think>"])
    ours = tokenizer_from_gguf(metadata)
    for text in odd_strings:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text


def test_sentencepiece_encodes_as_transformers(sentencepiece_metadata, odd_strings):
    """The vocabulary with the merges it was trained by, in transformers' Llama tokenizer, gives the same ids."""
    transformers = pytest.importorskip("transformers", reason="transformers, the witness, is not installed")
    metadata = sentencepiece_metadata()
    tokens, scores, types = (metadata[G + key] for key in ("tokens", "scores", "token_type"))
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == 1}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(normal, key=lambda token: -scores[vocab[token]])
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    theirs = transformers.LlamaTokenizerFast(vocab=vocab, merges=merges, add_bos_token=True, legacy=True)
    theirs.add_tokens(["<tool_call>", "<|sep|>"])
    ours = tokenizer_from_gguf(metadata)
    special = re.compile("<s>|</s>|<unk>|<tool_call>|<[|]sep[|]>")
    for text in odd_strings:
        if special.search(text) or text.startswith((" ", "▁")):
            continue  # there SentencePiece and llama.cpp write one more space, which transformers leaves out
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True), text


def test_roles_and_ends(byte_level_metadata):
    """Named ids become roles; end-of-turn tokens come from the file, else from their spelling."""
    tokenizer = tokenizer_from_gguf(byte_level_metadata("smollm", padding_token_id=0, unknown_token_id=0))
    assert dict(tokenizer.special_tokens) == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.end_token_ids) == (1, 2, (2,))
    assert tokenizer_from_gguf(byte_level_metadata("smollm", eot_token_id=0)).end_token_ids == (2, 0)
    assert tokenizer_from_gguf(byte_level_metadata("smollm", eot_token_id=2**32 - 1)).end_token_ids == (2,)
    ends = byte_level_metadata("smollm", eos_token_id=0)
    assert tokenizer_from_gguf(ends).end_token_ids == (0, 2)
    without = {key: value for key, value in ends.items() if not key.endswith("os_token_id")}
    tokenizer = tokenizer_from_gguf(without)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.end_token_ids) == (None, None, (2,))


def test_control_tokens_are_special_and_user_tokens_are_not(byte_level_metadata):
    """Control tokens are left out of text and may be taken literally; user-defined ones are text of their own."""
    tokenizer = tokenizer_from_gguf(byte_level_metadata("smollm"))
    assert tokenizer.special_ids == frozenset({0, 1, 2})
    ids = tokenizer.encode("<|im_start|>a<tool_call>  <think>")
    assert [ids[0], *ids[2:]] == [1, 3, 4]
    assert tokenizer.decode(ids) == "a<tool_call>  <think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>a<tool_call>  <think>"
    literal = tokenizer.encode("<|im_start|>a<tool_call>", parse_special=False)
    assert 1 not in literal
    assert literal[-1] == 3
    assert tokenizer.decode(literal) == "<|im_start|>a<tool_call>"
    assert tokenizer.encode("<|im_start|>") == [1]


def test_arrays_may_come_as_numpy(byte_level_metadata, sentencepiece_metadata):
    """Readers hand numbers out as NumPy arrays or as lists; both do."""
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    for metadata in (byte_level_metadata("smollm"), sentencepiece_metadata()):
        arrays = {
            key: numpy.asarray(value) if isinstance(value, list) and not isinstance(value[0], str) else value
            for key, value in metadata.items()
        }
        ours, same = tokenizer_from_gguf(arrays), tokenizer_from_gguf(metadata)
        assert ours.encode("The quick <tool_call> 123") == same.encode("The quick <tool_call> 123")


def test_templates_by_name(byte_level_metadata):
    """``tokenizer.chat_template`` is the default; others carry their name in the key."""
    metadata = {
        **byte_level_metadata("smollm"),
        "tokenizer.chat_template": "{{ eos_token }}",
        "tokenizer.chat_template.tool_use": "tools",
    }
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}]) == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=True) == [2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tools=[]) == "tools"


@pytest.mark.parametrize("metadata", [{}, {G + "model": "none"}, {G + "model": "no_vocab"}, {G + "model": "gpt2"}])
def test_without_a_vocabulary_there_is_none(metadata):
    """A file without a vocabulary is a model that runs on token ids."""
    assert tokenizer_from_gguf(metadata) is None


def test_unknown_kinds_list_the_known_ones(byte_level_metadata):
    """An unknown tokenizer model or pre-tokenizer would give wrong ids: an error with what is known."""
    metadata = byte_level_metadata("smollm")
    with pytest.raises(UnsupportedError, match=r"tokenizer.ggml.model is 't5' \(known models: gpt2 .*, llama"):
        tokenizer_from_gguf({**metadata, G + "model": "t5"})
    with pytest.raises(
        UnsupportedError, match=r"pre is 'tekken' \(known pre-tokenizers: default, .*, llama-bpe, .*qwen2"
    ):
        tokenizer_from_gguf({**metadata, G + "pre": "tekken"})


@pytest.mark.parametrize(
    "kind, changes, match",
    [
        ("bpe", {"tokens": "x"}, r"x.gguf: tokenizer.ggml.tokens: must be an array of str, got str"),
        ("bpe", {"tokens": [1, 2]}, r"tokenizer.ggml.tokens: must be an array of str, got list"),
        ("bpe", {"tokens": []}, r"tokenizer.ggml.tokens: is empty"),
        ("bpe", {"tokens": ["a", "b", "a"]}, r"tokenizer.ggml.tokens: has 'a' twice"),
        ("bpe", {"tokens": ["a" * 5000]}, r"tokenizer.ggml.tokens: has a token of 5000 characters; the limit is 4096"),
        ("bpe", {"token_type": [1]}, r"tokenizer.ggml.token_type: has 1 entries, but there are \d+ tokens"),
        ("bpe", {"token_type": None}, r"tokenizer.ggml.token_type: must be an array of int, got NoneType"),
        ("bpe", {"merges": ["ab"]}, r"tokenizer.ggml.merges: 'ab' is not two tokens with a space between"),
        ("bpe", {"merges": ["a nosuchtoken"]}, r"tokenizer.ggml.merges: .*Token .nosuchtoken. out of vocabulary"),
        ("bpe", {"merges": None}, r"tokenizer.ggml.merges: must be an array of str"),
        ("bpe", {"bos_token_id": 10**6}, r"tokenizer.ggml.bos_token_id: is 1000000, but ids go from 0 to \d+"),
        ("bpe", {"bos_token_id": "1"}, r"tokenizer.ggml.bos_token_id: must be of type int, got '1'"),
        ("bpe", {"bos_token_id": True}, r"tokenizer.ggml.bos_token_id: must be of type int, got True"),
        ("bpe", {"add_bos_token": 1}, r"tokenizer.ggml.add_bos_token: must be true or false, got 1"),
        (
            "bpe",
            {"add_eos_token": True, "eos_token_id": 2**32 - 1},
            r"add_eos_token: is true, but there is no tokenizer",
        ),
        ("bpe", {"model": 3}, r"tokenizer.ggml.model: must be of type str, got 3"),
        ("spm", {"scores": [0.0]}, r"tokenizer.ggml.scores: has 1 entries, but there are \d+ tokens"),
        ("spm", {"scores": None}, r"tokenizer.ggml.scores: must be an array of float"),
        ("spm", {"unknown_token_id": -5}, r"tokenizer.ggml.unknown_token_id: is -5, but ids go from 0"),
    ],
)
def test_contradictory_metadata_is_one_line(byte_level_metadata, sentencepiece_metadata, kind, changes, match):
    """The error names the file, the key and the value."""
    metadata = byte_level_metadata("smollm") if kind == "bpe" else sentencepiece_metadata()
    metadata |= {G + key: value for key, value in changes.items()}
    with pytest.raises(MalformedFileError, match=match) as caught:
        tokenizer_from_gguf(metadata, path="x.gguf")
    assert "\n" not in str(caught.value)


def test_unknown_token_type_and_scores_that_are_no_numbers(byte_level_metadata, sentencepiece_metadata):
    """Values outside of what the format knows are errors too."""
    metadata = byte_level_metadata("smollm")
    metadata[G + "token_type"] = [9, *metadata[G + "token_type"][1:]]
    with pytest.raises(MalformedFileError, match=r"tokenizer.ggml.token_type: has unknown type 9"):
        tokenizer_from_gguf(metadata)
    metadata = sentencepiece_metadata()
    metadata[G + "scores"] = [float("nan"), *metadata[G + "scores"][1:]]
    with pytest.raises(MalformedFileError, match=r"tokenizer.ggml.scores: has a value that is not a finite number"):
        tokenizer_from_gguf(metadata)
    metadata = {**byte_level_metadata("smollm"), "tokenizer.chat_template": 3}
    with pytest.raises(MalformedFileError, match=r"GGUF metadata: tokenizer.chat_template: must be a string, got int"):
        tokenizer_from_gguf(metadata)


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**32, 2**70])
def test_ids_outside_of_the_vocabulary_are_refused(byte_level_metadata, token_id):
    """Decoding, or asking for, an id that is not there says how far ids go."""
    tokenizer = tokenizer_from_gguf(byte_level_metadata("smollm"))
    match = rf"token id {token_id} is not in the vocabulary \(ids go up to {tokenizer.vocab_size - 1}\)"
    with pytest.raises(InvalidRequestError, match=match):
        tokenizer.decode([5, token_id])
    with pytest.raises(InvalidRequestError, match=match):
        tokenizer.id_to_token(token_id)


def test_lone_surrogates_are_refused(byte_level_metadata):
    """Text that has no UTF-8 cannot be encoded; the error says where."""
    tokenizer = tokenizer_from_gguf(byte_level_metadata("smollm"))
    with pytest.raises(InvalidRequestError, match=r"text has a lone surrogate '.udc80' at position 3"):
        tokenizer.encode("abc\udc80")


@pytest.mark.parametrize(
    "text", ["a" * 300_000, " " * 300_000, "\n" * 300_000, "9" * 300_000, "🙂" * 75_000, "ab " * 100_000]
)
@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "default"])
def test_huge_strings_come_back(byte_level_metadata, pre, text):
    """Encoding is quick for runs of anything, and decoding gives the text back."""
    tokenizer = tokenizer_from_gguf(byte_level_metadata(pre))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_of_tokens_with_spaces():
    """The space between two tokens is the first one that can be: a token may be, begin with, or end with a space."""
    tokens = [" ", "a", "b", " a", "a ", " ab"]
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}
    for merge in ("  a", "a  ", " a b"):
        assert tokenizer_from_gguf({**metadata, "tokenizer.ggml.merges": [merge]}) is not None
    with pytest.raises(MalformedFileError, match=r"tokenizer\.ggml\.merges: .*out of vocabulary"):
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.merges": ["a "]})
