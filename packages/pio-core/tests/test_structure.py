"""Structured output: every text that the masks allow has the form, and nothing else ends."""

# ruff: noqa: S106, S311 - tokens are not passwords, and the dice need not be good

import json
import random
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from inference_pio.core._structure import CACHED_STRUCTURES, StructureCompiler
from inference_pio.interfaces import (
    EngineError,
    InvalidRequestError,
    StructuredOutputs,
    StructureError,
    UnsupportedError,
)
from inference_pio.processing import tokenizer_from_folder, tokenizer_from_gguf
from inference_pio.testing import find_default_model
from inference_pio.weights import open_weights

PADDING = 64
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "é😀"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}
REGEXES = [
    r"[0-9]{3}-[a-z]{2,4}",
    r"(yes|no)[.!]?",
    r"[é😀]{1,3}",
    r"a.b",
    r"(ab|cd)*x",
    r"[^@]{1,9}@[a-z]{1,9}\.(com|org)",
    r""" "/'\\{2}""",
]
CHOICES = [("yes", "yesterday", "no"), ('a"b\\', "x\ny", "\x00"), ("é", "😀", "日本語")]


def byte_level_folder(folder):
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(
        ['{"name": "Ann", "age": 12, "tags": ["a", "b"], "ok": true} yes no 123-abc'] * 3, trainer
    )
    backend.add_tokens([AddedToken("<tool_call>", special=False)])
    return save(folder, backend)


def sentencepiece_folder(folder):
    """Byte fallback, a space before every text, and tokens that spell the same as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [chr(byte) for byte in range(0x21, 0x7F)] + ["▁", "▁a", "na", "me", "name", "ye", "yes"]
    merges = [("▁", "a"), ("n", "a"), ("m", "e"), ("na", "me"), ("y", "e"), ("ye", "s")]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return save(folder, backend)


def save(folder, backend):
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tokenizer_from_folder(folder)


@pytest.fixture(scope="module", params=["gguf", "byte-level", "sentencepiece"])
def tokenizer(request, tmp_path_factory):
    if request.param == "gguf":
        path = find_default_model()
        if path is None:
            pytest.skip("the default model is not installed")
        return tokenizer_from_gguf(open_weights(path).metadata)
    folder = tmp_path_factory.mktemp(request.param)
    return byte_level_folder(folder) if request.param == "byte-level" else sentencepiece_folder(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return StructureCompiler(tokenizer, tokenizer.vocab_size + PADDING, tokenizer.end_token_ids)


def allowed(structure):
    mask = np.zeros(structure.vocabulary.num_words, dtype=np.int32)
    structure.fill_mask(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(structure, tokenizer, rng, limit=300, closing=b""):
    """Random allowed tokens to the end; after ``limit`` short ones, those made of ``closing`` bytes first."""
    tokens = []
    for step in range(20 * limit):
        choices = allowed(structure)
        ends = [token_id for token_id in choices if token_id in tokenizer.end_token_ids]
        if ends and (step >= limit or len(ends) == len(choices) or rng.random() < 0.1):
            structure.advance(ends[0])
            return tokens, b"".join(map(tokenizer.token_bytes, tokens)).decode()
        words = [token_id for token_id in choices if token_id not in ends]
        if step >= limit:
            words.sort(key=lambda token_id: len(tokenizer.token_bytes(token_id)))
            words = [word for word in words if set(tokenizer.token_bytes(word)) <= set(closing)] or words[:20]
        tokens.append(rng.choice(words))
        structure.advance(tokens[-1])
    raise AssertionError(f"no end after {len(tokens)} tokens")


@pytest.mark.parametrize("regex", REGEXES)
def test_random_walks_match_the_regex(compiler, tokenizer, regex):
    """Whatever allowed tokens are drawn, the whole text matches."""
    for seed in range(5):
        _, text = walk(compiler.compile(StructuredOutputs(regex=regex)), tokenizer, random.Random(seed), limit=30)
        assert re.fullmatch(regex, text), text


@pytest.mark.parametrize("choice", CHOICES)
def test_random_walks_give_one_of_the_choices(compiler, tokenizer, choice):
    """Each choice can come, nothing else can."""
    structured = StructuredOutputs(choice=choice)
    texts = {walk(compiler.compile(structured), tokenizer, random.Random(seed))[1] for seed in range(40)}
    assert texts <= set(choice)
    assert len(texts) > 1


@pytest.mark.parametrize("as_text", [False, True])
def test_random_walks_fulfil_the_schema(compiler, tokenizer, as_text):
    """The text is JSON that ``jsonschema`` accepts, whether the schema comes as text or as a mapping."""
    structured = StructuredOutputs(json=json.dumps(PERSON) if as_text else PERSON)
    for seed in range(4):
        _, text = walk(compiler.compile(structured), tokenizer, random.Random(seed), limit=60)
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("schema", [{}, "{}", "true"])
def test_the_empty_schema_allows_any_value(compiler, schema):
    """Objects, arrays and plain values."""
    start = compiler.compile(StructuredOutputs(json=schema))
    assert {bytes([byte]) for byte in b'{["t1-'} <= {first_byte(start, token_id) for token_id in allowed(start)}


def first_byte(structure, token_id):
    return structure.vocabulary.spelling[token_id][:1]


def test_random_walks_follow_the_grammar(compiler, tokenizer):
    """Balanced brackets are beyond any regular expression."""
    grammar = 'start: pair+\npair: "(" pair* ")" | "[" pair* "]"'
    for seed in range(5):
        structure = compiler.compile(StructuredOutputs(grammar=grammar))
        _, text = walk(structure, tokenizer, random.Random(seed), limit=20, closing=b")]")
        while "()" in text or "[]" in text:
            text = text.replace("()", "").replace("[]", "")
        assert not text


def test_gbnf_is_read_too(compiler, tokenizer):
    """The spelling of llama.cpp, whose rules begin at ``root``."""
    grammar = 'root ::= word (", " word)* "."\nword ::= [a-c]{2} | "<s>"'
    for seed in range(5):
        _, text = walk(compiler.compile(StructuredOutputs(grammar=grammar)), tokenizer, random.Random(seed), limit=20)
        assert re.fullmatch(r"([a-c]{2}|<s>)(, ([a-c]{2}|<s>))*\.", text), text


def test_schemas_in_a_grammar_do_not_count_as_its_text(compiler, tokenizer):
    """Many tools make a long grammar, and compile all the same."""
    schema = json.dumps({"type": "object", "properties": {"a": {"enum": ["x" * 100]}}, "additionalProperties": False})
    rules = "".join(f'r{index}: "{index}" %json {schema}\n' for index in range(300))
    grammar = f"start: {' | '.join(f'r{index}' for index in range(300))}\n{rules}"
    assert len(grammar) > 2**15
    _, text = walk(compiler.compile(StructuredOutputs(grammar=grammar)), tokenizer, random.Random(0), limit=40)
    assert re.fullmatch(r'[0-9]+\{\s*("a"\s*:\s*"x{100}"\s*)?\}', text)


def between(low, high):
    """A lower bound and a distance to the upper one."""
    return st.tuples(st.integers(low, high), st.integers(0, 5))


def arrays(items):
    def make(schema, bounds):
        return {"type": "array", "items": schema, "minItems": bounds[0], "maxItems": sum(bounds)}

    return st.builds(make, items, between(0, 2))


def objects(values):
    def make(properties):
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    names = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=4)
    return st.builds(make, st.dictionaries(names, values, max_size=3))


SCALARS = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    between(-99, 99).map(lambda bounds: {"type": "integer", "minimum": bounds[0], "maximum": sum(bounds)}),
    between(0, 3).map(lambda bounds: {"type": "string", "minLength": bounds[0], "maxLength": sum(bounds)}),
    st.lists(
        st.text(st.characters(max_codepoint=0xFFF), max_size=4) | st.integers(-9, 9) | st.booleans(),
        min_size=1,
        max_size=4,
    ).map(lambda values: {"enum": values}),
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: (
        arrays(inner) | objects(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_any_schema_is_fulfilled_or_refused(compiler, tokenizer, schema, seed):
    """Of any schema made of these parts, the random text is accepted by ``jsonschema``."""
    _, text = walk(compiler.compile(StructuredOutputs(json=schema)), tokenizer, random.Random(seed), limit=40)
    jsonschema.validate(json.loads(text), schema)


def test_end_tokens_are_allowed_exactly_where_the_text_may_end(compiler, tokenizer):
    """Every prefix of a text is checked against the set of whole texts."""
    texts = ("a", "ab", "abcd")
    for text in texts:
        structure = compiler.compile(StructuredOutputs(choice=texts))
        for length in range(len(text) + 1):
            ends = set(tokenizer.end_token_ids) & set(allowed(structure))
            assert bool(ends) == (text[:length] in texts), text[:length]
            assert not ends or ends == set(tokenizer.end_token_ids)
            assert structure.is_finished == (text[:length] == "abcd")
            if length < len(text):
                structure.advance(spell(structure, text[length])[0])


def spell(structure, text):
    """One token per byte."""
    spelling = structure.vocabulary.spelling
    return [
        next(token_id for token_id, piece in enumerate(spelling) if piece == bytes([byte])) for byte in text.encode()
    ]


def test_characters_may_be_split_over_tokens(compiler):
    """A character of four bytes can come as four tokens, and the text cannot end within it."""
    structure = compiler.compile(StructuredOutputs(regex="😀|😁"))
    pieces = spell(structure, "😀")
    assert structure.valid_prefix(pieces) == 4
    for piece in pieces:
        assert not set(allowed(structure)) & structure.vocabulary.end_token_ids
        structure.advance(piece)
    assert structure.is_finished


def test_special_tokens_padding_and_gaps_are_never_allowed(compiler, tokenizer):
    """Where any text may come, every token that is text may, and special ones may not."""
    structure = compiler.compile(StructuredOutputs(regex=r"(.|\n)*"))
    may = set(allowed(structure))
    special = tokenizer.special_ids - set(tokenizer.end_token_ids)
    assert not may & special
    assert max(may) < tokenizer.vocab_size
    for token_id in (*special, tokenizer.vocab_size + 1):
        assert structure.valid_prefix([token_id]) == 0
        with pytest.raises(EngineError, match=f"token {token_id} does not follow"):
            structure.advance(token_id)
    assert set(allowed(structure)) == may


def test_the_spelling_of_a_special_token_is_text(compiler, tokenizer):
    """A choice that spells a special token is written with other tokens."""
    name = tokenizer.id_to_token(min(tokenizer.special_ids))
    tokens, text = walk(compiler.compile(StructuredOutputs(choice=[name])), tokenizer, random.Random(0))
    assert text == name
    assert not set(tokens) & tokenizer.special_ids


@pytest.mark.parametrize(
    "grammar", ["start: <s>", 'start: "a" <[1]>', 'start: /[<]/ <[^5]> "//"', 'start: "\\"" <|im_start|>']
)
def test_grammars_may_not_name_special_tokens(compiler, grammar):
    """Neither by name nor by number; between quotes they are text."""
    with pytest.raises(InvalidRequestError, match="names token <"):
        compiler.compile(StructuredOutputs(grammar=grammar))


def test_tags_in_quotes_patterns_and_comments_are_text(compiler, tokenizer):
    """Angle brackets outside of token names stay free."""
    grammar = 'start: "<b>" /<[x-z]>/ // <c>\n'
    _, text = walk(compiler.compile(StructuredOutputs(grammar=grammar)), tokenizer, random.Random(1))
    assert re.fullmatch("<b><[x-z]>", text)


def test_rollback_is_replay(compiler, tokenizer):
    """After taking back, masks are those of a structure that never went further; end tokens are taken back too."""
    rng = random.Random(3)
    structured = StructuredOutputs(json=PERSON)
    tokens, _ = walk(compiler.compile(structured), tokenizer, rng, limit=40)
    tokens.append(tokenizer.end_token_ids[0])
    structure = compiler.compile(structured)
    position = 0
    for _ in range(40):
        target = rng.randrange(len(tokens) + 1)
        for token_id in tokens[position:target]:
            structure.advance(token_id)
        structure.rollback(max(0, position - target))
        position = target
        fresh = compiler.compile(structured)
        for token_id in tokens[:position]:
            fresh.advance(token_id)
        assert allowed(structure) == allowed(fresh)
        assert structure.is_finished == fresh.is_finished
    structure.rollback(position)
    with pytest.raises(ValueError, match="cannot take back 1 tokens of 0"):
        structure.rollback(1)


def test_forks_are_independent(compiler, tokenizer):
    """Neither an advance nor an error of one is seen by the other; state of the end is copied."""
    structure = compiler.compile(StructuredOutputs(choice=["ab", "ac"]))
    a, b = spell(structure, "ab")
    structure.advance(a)
    fork = structure.fork()
    fork.advance(b)
    fork.advance(tokenizer.end_token_ids[0])
    assert fork.is_finished
    assert fork.fork().has_ended
    assert not structure.is_finished
    assert b in allowed(structure)
    fork.rollback(3)
    assert a in allowed(fork)


def test_valid_prefix_counts_and_changes_nothing(compiler, tokenizer):
    """Drafts count up to the first token that is not allowed, an end too early included."""
    structure = compiler.compile(StructuredOutputs(choice=["ab", "abcd"]))
    a, b, c, d = spell(structure, "abcd")
    end = tokenizer.end_token_ids[0]
    before = allowed(structure)
    drafts = [[], [a, b, c, d, end], [a, b, end], [a, end], [end], [b], [a, b, d], [a, b, c, d, a], [a, b, end, a]]
    assert [structure.valid_prefix(draft) for draft in drafts] == [0, 5, 3, 1, 0, 0, 2, 4, 3]
    assert allowed(structure) == before
    for token_id in (a, b, end):
        structure.advance(token_id)
    assert structure.valid_prefix([end, a]) == 1
    assert structure.valid_prefix([c]) == 0
    assert allowed(structure) == sorted(tokenizer.end_token_ids)


def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing(compiler, tokenizer):
    """The structure goes on as if it had not been offered."""
    structure = compiler.compile(StructuredOutputs(choice=["ab"]))
    a, b = spell(structure, "ab")
    with pytest.raises(EngineError, match=f"token {b} does not follow"):
        structure.advance(b)
    with pytest.raises(EngineError, match="may not end here"):
        structure.advance(tokenizer.end_token_ids[0])
    structure.advance(a)
    structure.advance(b)
    structure.advance(tokenizer.end_token_ids[0])
    with pytest.raises(EngineError, match=f"token {a} does not follow"):
        structure.advance(a)


DEEP = json.loads('{"items":' * 200 + "{}" + "}" * 200)


@pytest.mark.parametrize(
    ("structured", "message"),
    [
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, r"minimum \(5\) is greater than maximum \(3\)"),
        ({"json": {"type": "strin"}}, "Invalid type: strin"),
        ({"json": {"enum": []}}, "anyOf is empty"),
        ({"json": {"type": "object", "properties": {"a": False}, "required": ["a"]}}, "property 'a' is unsatisfiable"),
        ({"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "incompatible types"),
        ({"json": {"uniqueItems": True}}, 'Unimplemented keys: ."uniqueItems"'),
        ({"json": {"$ref": "https://example.org/schema"}}, "does not fetch"),
        ({"json": {"$ref": "#"}}, "no text matches"),
        ({"json": {"x-guidance": {"lenient": 3}}}, "cannot be used"),
        ({"json": "false"}, "no text matches the JSON schema false"),
        ({"json": "{"}, "Expecting property name"),
        ({"json": "[1]"}, r"must be an object or a boolean, got \[1\]"),
        ({"json": {"const": float("nan")}}, "not JSON compliant"),
        ({"json": {"const": object()}}, "not JSON serializable"),
        ({"json": {"properties": {1: {}}}}, "must be strings, got 1"),
        ({"json": DEEP}, "nested more than 32 deep"),
        ({"json": "[" * 60_000}, "nested more than 32 deep"),
        ({"json": " " * 70_000 + "{}"}, "has 70002 characters; the limit is 65536"),
        ({"json": {"multipleOf": 99_991}}, "multiples of 99991"),
        ({"json": {"allOf": [{"multipleOf": 997}, {"multipleOf": 0.991}]}}, "multiples of 0.991, too much beside"),
        ({"regex": "["}, "unclosed character class"),
        ({"regex": "(?=a)b"}, "look-around.* not supported"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": r"a[^\s\S]"}, "no text matches the regex"),
        ({"regex": "((a{100}){100}){100}"}, "too complex"),
        ({"regex": "a\ud800"}, "no UTF-8"),
        ({"regex": "a" * 40_000}, "the limit is 32768"),
        ({"choice": ["\ud800"]}, "no UTF-8"),
        ({"choice": ["x" * 300_000]}, "the limit is 262144"),
        ({"grammar": 'start: "a'}, "lexer error"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"grammar": 'start: start "a"'}, "no text matches the grammar"),
        ({"grammar": "root ::= ("}, "Expected '\\)'"),
        ({"grammar": 'a ::= "a"'}, "cannot be used"),
        ({"grammar": "root ::= " + "(" * 9999}, "recursion"),
        ({"grammar": "start: %json {"}, "is no JSON"),
        ({"grammar": "start: %json " + json.dumps(DEEP)}, "nested more than 32 deep"),
        ({"grammar": "start: %json " + "[" * 20_000}, "nested more than 32 deep"),
        ({"grammar": "start: %json " + json.dumps({"const": "x" * 66_000})}, "the limit is 65536"),
        ({"grammar": "start: " + ('%json {"const": "' + "x" * 60_000 + '"} ') * 3}, "the limit is 131072"),
        ({"grammar": 'start: %json {"multipleOf": 99991}'}, "multiples of 99991"),
        ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "too deeply nested"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_forms_that_no_text_can_have_are_refused_on_one_line(compiler, structured, message):
    """At once, with the reason and the way out."""
    with pytest.raises(InvalidRequestError, match=message) as caught:
        compiler.compile(StructuredOutputs(**structured))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.hint or "no UTF-8" in str(caught.value) or "json" in structured


def test_a_schema_that_shares_its_parts_is_bounded(compiler):
    """Written out, this small object would have a billion parts."""
    schema: dict[str, object] = {}
    for _ in range(30):
        schema = {"a": schema, "b": schema}
    with pytest.raises(InvalidRequestError, match="more than 20000 parts"):
        compiler.compile(StructuredOutputs(json=schema))


def test_a_grammar_that_leads_nowhere_says_so_where_it_shows(compiler):
    """What cannot be told beforehand fails this sequence alone, with a reason."""
    compiled = compiler.compile(StructuredOutputs(grammar='start: "a" b | "c"\nb: b "d"'))
    structure = compiled.fork()
    structure.advance(spell(structure, "a")[0])
    with pytest.raises(StructureError, match="cannot go on: no token can follow"):
        allowed(structure)
    assert structure.error is not None
    assert not structure.is_finished
    assert compiled.error is None


def test_text_that_the_vocabulary_cannot_spell_fails_where_it_shows(tmp_path):
    """Vocabularies without all bytes exist; the sequence ends with the reason, not with another text."""
    backend = Backend(models.BPE(vocab={"a": 0, "<end>": 1}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    compiler = StructureCompiler(tokenizer_from_folder(tmp_path), 2, [1])
    with pytest.raises(InvalidRequestError, match="no text matches the choice"):
        compiler.compile(StructuredOutputs(choice=["b"]))
    structure = compiler.compile(StructuredOutputs(choice=["ab"]))
    structure.advance(0)
    with pytest.raises(StructureError, match="no token can follow"):
        allowed(structure)


def test_runs_of_white_space_are_bounded(compiler):
    """A model that knows no better cannot fill its context with blanks."""
    structure = compiler.compile(StructuredOutputs(json={"type": "array"}))
    bracket, space = spell(structure, "[ ")
    assert structure.valid_prefix([bracket] + [space] * 200) == 65


def test_a_text_that_used_up_its_bounds_is_no_other_texts_business(compiler):
    """The next text of the form has all of them again, whoever asks for it."""
    structured = StructuredOutputs(regex="(a{1,900}){1,900}")

    def write(count):
        structure = compiler.compile(structured)
        [token_id] = spell(structure, "a")
        for _ in range(count):
            assert token_id in allowed(structure)
            structure.advance(token_id)

    write(20)
    with pytest.raises(StructureError, match="cannot go on: lexer error: too many"):
        write(2000)
    write(20)


def test_forms_are_compiled_once_and_the_oldest_is_forgotten(tokenizer, monkeypatch):
    """Equal forms share the work, not the state; at most 128 are kept."""
    compiler = StructureCompiler(tokenizer, tokenizer.vocab_size, tokenizer.end_token_ids)
    compiled = []
    compile_one = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *key: compiled.append(key) or compile_one(*key))
    first = compiler.compile(StructuredOutputs(choice=["ab"]))
    first.advance(spell(first, "a")[0])
    second = compiler.compile(StructuredOutputs(choice=("ab",)))
    assert len(compiled) == 1
    assert second.valid_prefix(spell(second, "ab")) == 2
    for index in range(CACHED_STRUCTURES):
        compiler.compile(StructuredOutputs(choice=[f"x{index}"]))
    compiler.compile(StructuredOutputs(choice=["ab"]))
    assert len(compiled) == CACHED_STRUCTURES + 2
    assert len(compiler._compiled) == CACHED_STRUCTURES


def test_a_model_without_an_end_token_finishes_all_the_same(tokenizer):
    """Its texts are finished where nothing may follow, and no unused token is offered instead."""
    compiler = StructureCompiler(tokenizer, tokenizer.vocab_size + 1, ())
    structure = compiler.compile(StructuredOutputs(choice=["ab"]))
    for token_id in spell(structure, "ab"):
        assert structure.vocabulary.spelling[allowed(structure)[0]] in b"ab"
        structure.advance(token_id)
    assert structure.is_finished
    assert allowed(structure) == []


def test_a_vocabulary_without_end_or_spare_token_is_refused(tmp_path):
    """There is nothing that could end a text."""
    backend = Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    compiler = StructureCompiler(tokenizer_from_folder(tmp_path), 2, ())
    with pytest.raises(UnsupportedError, match="names none"):
        compiler.compile(StructuredOutputs(regex="a"))
