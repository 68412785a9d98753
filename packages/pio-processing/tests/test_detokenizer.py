"""Text as it comes: the pieces, joined, are the text of all tokens, cut at the first stop string."""

# ruff: noqa: S106, S311 - tokens are not passwords, and the dice need not be good

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.processing import IncrementalDetokenizer, StopMatcher, tokenizer_from_gguf


def cut(text, stops, *, include_stop=False):
    """The specification, slowly: read character by character until the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[:end] if include_stop else text[: end - len(stop)], stop
    return text, None


def run(tokenizer, ids, **options):
    """All pieces, the object after the last one, and the pieces' total after each token."""
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    pieces.append(detokenizer.finish())
    return pieces, detokenizer


@pytest.fixture(scope="module")
def spm(sentencepiece_metadata):
    return tokenizer_from_gguf(sentencepiece_metadata())


@pytest.fixture(scope="module")
def tokenizers(smollm2, spm, sentencepiece_metadata):
    return {
        "smollm2": smollm2,
        "spm": spm,
        "spm-unspaced": tokenizer_from_gguf(sentencepiece_metadata(add_space_prefix=False)),
    }


KINDS = ["smollm2", "spm", "spm-unspaced"]


@st.composite
def case(draw):
    """Ids that favour special tokens, single bytes and spaces, and stop strings likely to occur in their text."""
    seeds = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**6)), max_size=24))
    alphabet = st.sampled_from([" ", "a", "e", "\n", "\ufffd", "\u00e9", "<", "1", "the", " t"])
    stops = draw(st.lists(st.lists(alphabet, min_size=1, max_size=4).map("".join), max_size=3))
    return seeds, stops, draw(st.booleans()), draw(st.booleans())


@pytest.fixture(scope="module")
def pools(tokenizers):
    """Per tokenizer, five sorts of ids: all, small ones, special ones, single bytes, words with a space before."""

    def sorts(tokenizer):
        size = tokenizer.vocab_size
        pieces = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        single = [token_id for token_id, piece in enumerate(pieces) if len(piece) == 1]
        spaced = [token_id for token_id, piece in enumerate(pieces[:2000]) if piece.startswith(b" ")]
        return [range(size), range(min(size, 600)), sorted(tokenizer.special_ids), single, spaced]

    return {kind: sorts(tokenizer) for kind, tokenizer in tokenizers.items()}


def ids_of(pools, seeds):
    return [pools[sort][number % len(pools[sort])] for sort, number in seeds]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None, derandomize=True)
@given(case=case())
def test_pieces_joined_are_the_text_cut_at_the_stop(tokenizers, pools, kind, case):
    """Whatever the ids, invalid UTF-8 and special tokens included, and whatever the stop strings."""
    seeds, stops, skip, include = case
    tokenizer = tokenizers[kind]
    ids = ids_of(pools[kind], seeds)
    text, stop = cut(tokenizer.decode(ids, skip_special_tokens=skip), stops, include_stop=include)
    pieces, detokenizer = run(tokenizer, ids, stop=stops, skip_special_tokens=skip, include_stop=include)
    assert "".join(pieces) == text
    assert detokenizer.text == text
    assert detokenizer.stopped_by == stop


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(case=case(), split=st.integers(0, 24))
def test_a_prompt_before_it_is_continued(tokenizers, pools, kind, case, split):
    """With the prompt's tokens given, the text is what decoding both has beyond the prompt alone."""
    tokenizer = tokenizers[kind]
    ids = ids_of(pools[kind], [seed for seed in case[0] if seed[0] != 3])  # whole characters at the border
    prompt, rest = ids[:split], ids[split:]
    before, after = tokenizer.decode(prompt), tokenizer.decode(ids)
    if after.startswith(before) and "\ufffd" not in after:
        assert "".join(run(tokenizer, rest, prompt_token_ids=prompt)[0]) == after[len(before) :]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_held_back_longer_than_needed(tokenizers, kind):
    """Without stop strings the text so far is always that of the tokens so far, less an unfinished character."""
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("The café costs 12 € 🙂 你好. Done", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(tokenizer)
    for count, token_id in enumerate(ids, start=1):
        detokenizer.push(token_id)
        assert detokenizer.text == tokenizer.decode(ids[:count]).rstrip("\ufffd")
    assert detokenizer.finish() == ""


def test_partial_utf8_waits_for_its_rest(smollm2):
    """No replacement character appears for a character that is still coming, and one does where it never comes."""
    ids = smollm2.encode("🤷‍♀️")
    pieces, _ = run(smollm2, ids)
    assert len(ids) > 2
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "🤷‍♀️"
    pieces, _ = run(smollm2, ids[:1])
    assert pieces == ["", "\ufffd"]


@pytest.mark.parametrize(
    "stops, text, certain, stop",
    [
        (["END"], "some ENDING", "some ", "END"),
        (["ENDING", "DING"], "some ENDING", "some ", "ENDING"),
        (["NDI", "ENDING"], "some ENDING", "some E", "NDI"),
        (["abcd", "c"], "xabcd", "xab", "c"),
        (["aab"], "aaab", "a", "aab"),
        (["aab"], "aaaa", "aaaa", None),
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo", "\n\n"),
        (["x"], "", "", None),
        ([], "anything", "anything", None),
        (["a" * 1000], "a" * 999, "a" * 999, None),
        (["abab" * 50 + "c"], "abab" * 60 + "c", "abab" * 10, "abab" * 50 + "c"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_stop_strings_are_found_across_borders(stops, text, certain, stop, step):
    """The answer is the same however the text is cut up: the first to end wins, of those together the longest."""
    matcher = StopMatcher(stops)
    out, found = "", None
    for start in range(0, len(text), step):
        piece, found = matcher.push(text[start : start + step])
        out += piece
        if found:
            break
    out += matcher.flush()
    assert (out, found) == (certain, stop)


def test_held_back_is_only_what_may_begin_a_stop_string():
    """The longest end of the text that begins a stop string waits, and not a character more."""
    matcher = StopMatcher(["<|end|>", "\n\nUser:"])
    assert matcher.push("hello <|e") == ("hello ", None)
    assert matcher.push("x") == ("<|ex", None)
    assert matcher.push("a\n\nUs") == ("a", None)
    assert matcher.push("\n") == ("\n\nUs", None)
    assert matcher.flush() == "\n"
    assert matcher.flush() == ""


def test_after_a_stop_string_nothing_comes(smollm2):
    """The text stays as it is; the stop string is reported, and kept only if asked for."""
    ids = smollm2.encode("one two three four")
    for include, expected in ((False, "one "), (True, "one two")):
        detokenizer = IncrementalDetokenizer(smollm2, stop=["two"], include_stop=include)
        assert "".join(detokenizer.push(token_id) for token_id in ids) == expected
        assert (detokenizer.stopped_by, detokenizer.text) == ("two", expected)
        assert detokenizer.push(ids[0]) == ""
        assert detokenizer.finish() == ""
        assert detokenizer.text == expected


def test_a_single_stop_string_may_come_as_it_is(smollm2):
    """``stop="abc"`` means one stop string, not three letters."""
    pieces, detokenizer = run(smollm2, smollm2.encode("cab abc"), stop="abc")
    assert ("".join(pieces), detokenizer.stopped_by) == ("cab ", "abc")


def test_mistakes_are_named(smollm2):
    """An empty stop string and a token after the end are errors."""
    with pytest.raises(ValueError, match=r"stop strings must not be empty"):
        IncrementalDetokenizer(smollm2, stop=["a", ""])
    detokenizer = IncrementalDetokenizer(smollm2)
    assert detokenizer.finish() == ""
    assert detokenizer.finish() == ""
    with pytest.raises(ValueError, match=r"push\(\) after finish\(\)"):
        detokenizer.push(5)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_vocabulary_add_no_text(tokenizers, kind):
    """A model whose embedding is padded may choose one; the text goes on as if it had not, a character's bytes too."""
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("The café 🙂", add_special_tokens=False)
    padded = [padding for token_id in ids for padding in (tokenizer.vocab_size, token_id, 2**40)]
    assert "".join(run(tokenizer, padded)[0]) == "The café 🙂"


def test_metaspace_drops_the_space_of_the_first_token_only(corpus, tmp_path):
    """The rule of Metaspace decoders, streamed."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from inference_pio.processing import tokenizer_from_folder

    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([corpus] * 3, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_from_folder(tmp_path)
    generator = random.Random(3)
    for _ in range(200):
        ids = [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(8))]
        for skip in (False, True):
            assert "".join(run(tokenizer, ids, skip_special_tokens=skip)[0]) == backend.decode(
                ids, skip_special_tokens=skip
            )


def test_long_texts_cost_no_more_per_token(smollm2):
    """Work per token does not grow with the text: the object holds no more than what is still uncertain."""
    detokenizer = IncrementalDetokenizer(smollm2, stop=["\n\nUser:"])
    ids = smollm2.encode("The quick brown fox jumps over the lazy dog.\n") * 2000
    longest = 0
    for token_id in ids:
        detokenizer.push(token_id)
        longest = max(longest, len(detokenizer._matcher._held))
    assert longest <= len("\n\nUser:")
    assert detokenizer.text + detokenizer.finish() == smollm2.decode(ids)
