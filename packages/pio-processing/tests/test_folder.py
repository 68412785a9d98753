"""Tokenizers from a model folder, against transformers."""

# ruff: noqa: S105, S106, S311 - tokens are not passwords, and the dice need not be good

import json
import random

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from inference_pio.interfaces import LimitExceededError, MalformedFileError, PioError, UnsupportedError
from inference_pio.processing import tokenizer_from_folder

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA3 = WORDS + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(corpus, pre_tokenizer):
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator([corpus] * 3, trainer)
    return backend


def gpt2_shape(corpus):
    return byte_level(corpus, pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3_shape(corpus):
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend = byte_level(corpus, pre)
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A <s> $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return backend


def qwen_shape(corpus):
    split = pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated")
    pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend = byte_level(corpus, pre)
    backend.normalizer = normalizers.NFC()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_tokens(
        [AddedToken("<tool_call>", special=False, normalized=False), AddedToken("<think>", special=False)]
    )
    return backend


def llama2_shape(corpus):
    special = ["<unk>", "<s>", "</s>"]
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    backend.train_from_iterator([line[:40] for line in corpus.splitlines()] + corpus.split(), trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    backend = Backend.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


def metaspace_shape(corpus):
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([corpus] * 3, trainer)
    return backend


SHAPES = {
    "gpt2": gpt2_shape,
    "llama3": llama3_shape,
    "qwen": qwen_shape,
    "llama2": llama2_shape,
    "metaspace": metaspace_shape,
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, corpus, tmp_path_factory):
    """A folder written by transformers, read by us and by transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers, the witness, is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    if request.param in ("llama2", "metaspace"):
        named["unk_token"] = "<unk>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=SHAPES[request.param](corpus), clean_up_tokenization_spaces=False, **named
    ).save_pretrained(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return request.param, tokenizer_from_folder(folder), theirs


@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_encodes_as_transformers(pair, odd_strings, add_special_tokens):
    """Every odd string gives the ids that transformers gives, with the tokens around it and without."""
    _, ours, theirs = pair
    for text in odd_strings:
        expected = theirs.encode(text, add_special_tokens=add_special_tokens)
        assert ours.encode(text, add_special_tokens=add_special_tokens) == expected, text


@pytest.mark.parametrize("shape", ["gpt2", "llama3", "llama2"])
@pytest.mark.parametrize("flag", [False, True])
def test_tokenizer_json_decides_on_the_tokens_around(corpus, tmp_path, shape, flag):
    """``add_bos_token`` in the config does not change what tokenizer.json says, as in transformers 5."""
    transformers = pytest.importorskip("transformers", reason="transformers, the witness, is not installed")
    SHAPES[shape](corpus).save(str(tmp_path / "tokenizer.json"))
    config = {"add_bos_token": flag, "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer_from_folder(tmp_path).encode("The fox") == theirs.encode("The fox")


def test_special_spellings_as_plain_text(pair, odd_strings):
    """Without parsing them, special tokens spelled out are ordinary text, as transformers' ``split_special_tokens``."""
    _, ours, theirs = pair
    for text in [*odd_strings, "a<s>b</s>", "<|im_end|><tool_call><think>x", "<unk> <s>"]:
        expected = theirs.encode(text, split_special_tokens=True)
        assert ours.encode(text, parse_special=False) == expected, text


@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_decodes_as_transformers(pair, odd_strings, skip_special_tokens):
    """The text of an encoded string is the one that transformers gives."""
    _, ours, theirs = pair
    for text in odd_strings:
        ids = theirs.encode(text)
        expected = theirs.decode(ids, skip_special_tokens=skip_special_tokens)
        assert ours.decode(ids, skip_special_tokens=skip_special_tokens) == expected, text


@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_decodes_random_ids_as_transformers(pair, skip_special_tokens):
    """So is the text of ids in any order, broken UTF-8 included, as far as transformers' rule is the same.

    SentencePiece byte tokens are the exception: where a run of them is not UTF-8, transformers writes one U+FFFD for
    each byte of the run, and we one for each part of it that is invalid, as for byte-level tokens.
    """
    name, ours, theirs = pair
    generator = random.Random(7)
    vocabulary = theirs.get_vocab()
    ids = sorted(id_ for token, id_ in vocabulary.items() if not (name == "llama2" and token.startswith("<0x")))
    for _ in range(300):
        picked = [generator.choice(ids) for _ in range(generator.randrange(12))]
        expected = theirs.decode(picked, skip_special_tokens=skip_special_tokens)
        assert ours.decode(picked, skip_special_tokens=skip_special_tokens) == expected, picked


def test_knows_its_special_tokens(pair):
    """Roles, ids and sizes are those that transformers reports."""
    _, ours, theirs = pair
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert dict(ours.special_tokens) == theirs.special_tokens_map
    assert set(theirs.all_special_ids) <= ours.special_ids
    assert ours.vocab_size == len(theirs)
    assert ours.end_token_ids == (theirs.eos_token_id,)
    for token_id in range(ours.vocab_size):
        assert ours.id_to_token(token_id) == theirs.convert_ids_to_tokens(token_id)
        assert ours.token_to_id(ours.id_to_token(token_id)) == token_id
    assert ours.token_to_id("no such token") is None


def test_sentencepiece_byte_runs(corpus, tmp_path):
    """Byte tokens that make up characters are decoded as such; each invalid part becomes one U+FFFD."""
    llama2_shape(corpus).save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_from_folder(tmp_path)

    def ids(data):
        return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]

    assert tokenizer.decode(ids("🙂".encode())) == "🙂"
    assert tokenizer.decode(ids("🙂".encode()[:3] + b"A")) == "\ufffdA"
    assert tokenizer.decode(ids(b"\xff\xfe")) == "\ufffd\ufffd"


@pytest.fixture
def gpt2_folder(corpus, tmp_path):
    gpt2_shape(corpus).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_truncation_and_padding_in_the_file_are_off(gpt2_folder):
    """A file made for training may cut and pad; a prompt is never cut or padded."""
    backend = Backend.from_file(str(gpt2_folder / "tokenizer.json"))
    expected = backend.encode("The quick brown fox").ids
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    backend.save(str(gpt2_folder / "tokenizer.json"))
    assert tokenizer_from_folder(gpt2_folder).encode("The quick brown fox") == expected


def test_without_any_vocabulary_there_is_none(tmp_path):
    """A folder without tokenizer files is a model that runs on token ids."""
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_from_folder(tmp_path) is None


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_another_kind_of_vocabulary_says_how_to_convert_it(tmp_path, name):
    """A vocabulary that we do not read is an error, not a model without tokenizer."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedError, match=rf"has {name}, but no tokenizer.json \(convert it: .*save_pretrained"):
        tokenizer_from_folder(tmp_path)


def test_tokens_named_in_the_config_become_special(gpt2_folder):
    """A token that the config names is special, though tokenizer.json does not mark it; unknown ones are ignored."""
    config = {
        "eos_token": {"content": "Z", "__type": "AddedToken"},
        "bos_token": None,
        "additional_special_tokens": ["Q", "not in the vocabulary"],
        "pad_token": "[PAD]",
    }
    (gpt2_folder / "tokenizer_config.json").write_text(json.dumps(config))
    (gpt2_folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "an", "unk_token": "<s>"}))
    tokenizer = tokenizer_from_folder(gpt2_folder)
    assert tokenizer.eos_token_id == tokenizer.token_to_id("Z")
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_id in tokenizer.special_ids
    assert dict(tokenizer.special_tokens) == {"eos_token": "Z", "unk_token": "<s>", "pad_token": "[PAD]"}
    assert tokenizer.decode(tokenizer.encode("<s>one QZ", add_special_tokens=False)) == "one "


def test_templates_are_found_where_models_keep_them(gpt2_folder):
    """A file of its own comes before the config; named ones come from the config's list and from their folder."""
    named = [{"name": "default", "template": "config"}, {"name": "rag", "template": "rag of the config"}]
    (gpt2_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert {name: template.source for name, template in tokenizer_from_folder(gpt2_folder).chat_templates.items()} == {
        "default": "config",
        "rag": "rag of the config",
    }
    (gpt2_folder / "chat_template.jinja").write_text("file")
    (gpt2_folder / "additional_chat_templates").mkdir()
    (gpt2_folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    tokenizer = tokenizer_from_folder(gpt2_folder)
    assert {name: template.source for name, template in tokenizer.chat_templates.items()} == {
        "default": "file",
        "rag": "rag of the config",
        "tool_use": "tools",
    }
    user = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(user) == "file"
    assert tokenizer.apply_chat_template(user, tools=[]) == "tools"
    assert tokenizer.apply_chat_template(user, tools=[], chat_template="rag") == "rag of the config"
    assert tokenizer.apply_chat_template(user, chat_template="{{ bos_token }}given") == "given"


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", r"tokenizer.json: syntax: is not JSON: .* at line 1, column 1"),
        (b"{", r"tokenizer.json: syntax: is not JSON: .* at line 1, column 2"),
        (b"[]", r"tokenizer.json: content: must be an object, got list"),
        (b"\xff\xfe", r"tokenizer.json: encoding: is not UTF-8 at byte 0"),
        (
            b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
            r"tokenizer.json: content: ",
        ),
        (b'{"version": "1.0"}', r"tokenizer.json: model: must be an object, got NoneType"),
        (b"[" * 100_000, r"tokenizer.json: depth: is nested deeper than 64"),
    ],
)
def test_malformed_tokenizer_is_one_line(tmp_path, content, match):
    """Whatever is wrong with tokenizer.json, the error names the file and fits on a line."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(MalformedFileError, match=match) as caught:
        tokenizer_from_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape, path, value, match",
    [
        ("gpt2", ("model", "type"), "WordPiece", r"model is 'WordPiece' \(supported: BPE, Unigram\)"),
        ("gpt2", ("model", "type"), None, None),
        ("gpt2", ("model", "dropout"), 0.9, None),
        (
            "gpt2",
            ("model", "continuing_subword_prefix"),
            "##",
            r"continuing_subword_prefix is '##' \(supported: null or",
        ),
        (
            "gpt2",
            ("model", "end_of_word_suffix"),
            "</w>",
            r"model.end_of_word_suffix is '</w>' \(supported: null or an",
        ),
        ("gpt2", ("model", "vocab", "a"), 3, r"model.vocab: has \d+ tokens, but only \d+ different ids"),
        ("gpt2", ("model", "vocab", "a"), -1, r"model.vocab: has an id outside of 0 to 4294967295"),
        ("gpt2", ("model", "vocab", "a"), 2**32, r"model.vocab: has an id outside of 0 to 4294967295"),
        ("gpt2", ("model", "vocab", "a"), "3", r"model.vocab: must map tokens to integers"),
        ("gpt2", ("model", "vocab"), [], r"model.vocab: must be an object, got list"),
        ("gpt2", ("model", "merges"), None, r"model.merges: must be a list, got NoneType"),
        ("gpt2", ("model", "merges", 0), ["a"], r"model.merges: \['a'\] is not two tokens"),
        ("gpt2", ("model", "merges", 0), "a b c", r"model.merges: 'a b c' is not two tokens"),
        ("gpt2", ("model", "merges", 0), ["a", "nosuch"], r"content: .*nosuch"),
        ("gpt2", ("added_tokens",), {}, r"added_tokens: must be a list, got dict"),
        ("gpt2", ("added_tokens", 0), "x", r"added_tokens: must be an object, got str"),
        ("gpt2", ("added_tokens", 0, "nonsense"), 1, None),
        ("gpt2", ("added_tokens", 0, "content"), 1, r"content: "),
        ("gpt2", ("pre_tokenizer", "type"), "Nonsense", r"content: "),
        ("llama3", ("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "("}, r"content: "),
        (
            "llama3",
            ("post_processor", "processors", 1, "special_tokens"),
            {},
            r"post_processor.single: uses '<s>', which is not described",
        ),
        ("metaspace", ("model", "unk_id"), None, r"model.unk_id: must be the id of a token, got None"),
        ("metaspace", ("model", "vocab"), {}, r"model.vocab: must be a list, got dict"),
    ],
)
def test_contradictions_in_the_tokenizer_are_named(corpus, tmp_path, shape, path, value, match):
    """What would make the library below panic, or ids ambiguous, is refused; what is merely odd still encodes."""
    plain = SHAPES[shape](corpus)
    spec = json.loads(plain.to_str())
    place = spec
    for key in path[:-1]:
        place = place[key]
    if value is None and path[-1] == "type":
        del place["type"]
    else:
        place[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    if match is None:
        text = "The quick brown fox's 12 jumps"
        assert tokenizer_from_folder(tmp_path).encode(text) == plain.encode(text).ids
    else:
        with pytest.raises(PioError, match=match) as caught:
            tokenizer_from_folder(tmp_path)
        assert "tokenizer.json: " in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("tokenizer_config.json", "{", r"tokenizer_config.json: syntax: is not JSON: .* line 1, column 2"),
        ("tokenizer_config.json", "[]", r"tokenizer_config.json: content: must be an object, got list"),
        ("tokenizer_config.json", '{"a": 1, "a": 2}', r"tokenizer_config.json: a: is given twice"),
        ("tokenizer_config.json", '{"a": NaN}', r"tokenizer_config.json: number: NaN is not JSON"),
        ("tokenizer_config.json", '{"a": ' + "9" * 5000 + "}", r"tokenizer_config.json: number: Exceeds the limit"),
        (
            "tokenizer_config.json",
            '{"a": ' * 70 + "1" + "}" * 70,
            r"tokenizer_config.json: depth: is nested deeper than 64",
        ),
        ("tokenizer_config.json", '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}", r"depth: is nested deeper than 64"),
        ("tokenizer_config.json", '{"bos_token": 3}', r"tokenizer_config.json: bos_token: must be a token, got 3"),
        ("tokenizer_config.json", '{"additional_special_tokens": "x"}', r"additional_special_tokens: must be a list"),
        ("tokenizer_config.json", '{"chat_template": {"a": 1}}', r"chat_template: must be a string or a list of named"),
        ("special_tokens_map.json", '{"eos_token": ["x"]}', r"special_tokens_map.json: eos_token: must be a token"),
        ("chat_template.jinja", "x" * (256 * 1024 + 1), r"chat_template.jinja: size: more than 262144 bytes"),
    ],
)
def test_malformed_companion_is_one_line(gpt2_folder, name, content, match):
    """The same for the files beside it."""
    (gpt2_folder / name).write_text(content)
    with pytest.raises(MalformedFileError, match=match) as caught:
        tokenizer_from_folder(gpt2_folder)
    assert "\n" not in str(caught.value)


def test_too_large_a_tokenizer_is_not_parsed(tmp_path):
    """A file beyond 64 MiB is refused by its size."""
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(LimitExceededError, match=r"tokenizer.json: size: more than 67108864 bytes"):
        tokenizer_from_folder(tmp_path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    """Only regular files are read."""
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(MalformedFileError, match=r"tokenizer.json: file: is not a regular file"):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.CTC(), None])
def test_an_unknown_decoder_lists_the_known_ones(corpus, tmp_path, decoder):
    """Text would come out wrong, so the tokenizer is refused, with what is supported."""
    backend = gpt2_shape(corpus)
    backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match=r"decoder is .* \(supported decoders: ByteLevel; Metaspace; Replace"):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_never_escape_as_something_else(gpt2_folder, seed):
    """A byte changed, a piece cut out: a tokenizer or one of our errors, never a crash of the library below."""
    path = gpt2_folder / "tokenizer.json"
    generator = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(generator.randrange(1, 6)):
        at = generator.randrange(len(data))
        if generator.random() < 0.5:
            data[at] = generator.choice(b'{}[]",:0129ntf\\')
        else:
            del data[at : at + generator.randrange(1, 200)]
    path.write_bytes(bytes(data))
    tokenizer = problem = None
    try:
        tokenizer = tokenizer_from_folder(gpt2_folder)
    except PioError as error:
        problem = str(error)
    if tokenizer is None:
        assert "\n" not in problem
    else:
        assert isinstance(tokenizer.encode("The quick brown fox"), list)
