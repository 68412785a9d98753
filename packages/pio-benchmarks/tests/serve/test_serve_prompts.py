"""Made prompts, prompts from files, lengths, and the other options."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inference_pio.benchmarks._gen_executor import open_model
from inference_pio.benchmarks._serve_dataset import check_endpoint, choose_prompts, read_dataset
from inference_pio.benchmarks._serve_options import (
    check_secret_url,
    parse_extra_body,
    parse_metrics,
    parse_objectives,
    parse_percentiles,
    parse_positive,
    read_key,
)
from inference_pio.benchmarks._serve_prompts import LengthRange, Prompt, PromptMaker, WordRate, parse_length
from inference_pio.benchmarks._serve_words import WORDS
from inference_pio.interfaces import InvalidRequestError, MalformedFileError, ModelNotFoundError


def generator(seed=0):
    return np.random.default_rng(seed)


def test_words_are_distinct_and_single_tokens():
    """One token each in the default model's vocabulary, first or behind a space, so that lengths come out."""
    assert len(set(WORDS)) == len(WORDS) == 480
    tokenizer = open_model("smollm2-135m-instruct").tokenizer()
    assert len(tokenizer.encode(" " + " ".join(WORDS))) == len(WORDS)
    assert [word for word in WORDS if len(tokenizer.encode(word)) != 1] == []


@pytest.mark.parametrize("words", [3, 5, 40])
def test_no_prompt_begins_like_another(words):
    """Of thousands, none shares its first three words with any other, and neighbours share no first word."""
    maker = PromptMaker(generator(), WordRate())
    texts = [maker.make(words, 1).content.split() for _ in range(3000)]
    assert {len(text) for text in texts} == {words}
    assert len({tuple(text[:3]) for text in texts}) == 3000
    for index in range(len(texts) - len(WORDS) + 1):
        if index % 97 == 0:
            assert len({text[0] for text in texts[index : index + len(WORDS)]}) == len(WORDS)


def test_prompts_repeat_with_their_seed_alone():
    """The same seed the same prompts, another seed none of them."""
    one, same, other = (PromptMaker(generator(seed), WordRate()) for seed in (1, 1, 2))
    first = [one.make(8, 4) for _ in range(50)]
    assert first == [same.make(8, 4) for _ in range(50)]
    heads = {tuple(prompt.content.split()[:3]) for prompt in first}
    assert heads.isdisjoint(tuple(other.make(8, 4).content.split()[:3]) for _ in range(50))


def test_a_shared_prefix_is_shared_and_the_rest_is_not():
    """Just as long as was said, behind it different from the first word on."""
    maker = PromptMaker(generator(), WordRate(), shared_prefix_len=20)
    texts = [maker.make(10, 1).content.split() for _ in range(30)]
    assert {len(text) for text in texts} == {30}
    assert len({tuple(text[:20]) for text in texts}) == 1
    assert len({text[20] for text in texts}) == 30


@pytest.mark.parametrize(
    ("rate", "tokens", "words"),
    [(WordRate(), 7, 7), (WordRate(1.0, 30.0), 100, 70), (WordRate(2.0, 4.0), 100, 48), (WordRate(1.0, 30.0), 5, 1)],
)
def test_words_make_up_the_tokens_that_the_server_counts(rate, tokens, words):
    """What a template adds is taken off; one word is the least."""
    assert len(PromptMaker(generator(), rate).make(tokens, 1).content.split()) == words


def test_lengths_are_ranges():
    """Both ends are drawn."""
    found = parse_length("--input-len", "4-6").draw(generator(), 200)
    assert set(found) == {4, 5, 6}
    assert parse_length("--input-len", "9") == LengthRange(9, 9)
    assert [str(LengthRange(9, 9)), str(LengthRange(4, 6))] == ["9", "4-6"]


@pytest.mark.parametrize("text", ["", "0", "0-3", "-1", "3-", "-", "a", "1.5", "1-2-3", "9" * 9, "\u0663"])
def test_what_is_no_length(text):
    """With an example of one."""
    with pytest.raises(InvalidRequestError, match="is no length") as caught:
        parse_length("--input-len", text)
    assert "--input-len 64-256" in caught.value.hint
    with pytest.raises(InvalidRequestError, match="ends before it begins"):
        parse_length("--input-len", "6-4")


def write(tmp_path, text, name="data.jsonl"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_of_json(tmp_path):
    """Prompts and messages, with lengths under any of their names; separators of lines within text are text."""
    messages = [{"role": "user", "content": "hi"}]
    lines = [
        {"prompt": "a\u2028b"},
        {"prompt": "b", "output_tokens": 5},
        {"messages": messages, "max_tokens": 6},
    ]
    path = write(tmp_path, "\ufeff\n" + "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    assert read_dataset(path, None, default_len=9) == [
        Prompt("a\u2028b", 9),
        Prompt("b", 5),
        Prompt(tuple(messages), 6),
    ]
    assert [prompt.output_len for prompt in read_dataset(path, 3)] == [3, 3, 3]


def test_share_gpt(tmp_path):
    """First turn and length of the second; conversations without an answer are passed over."""
    turns = [{"from": "human", "value": "question"}, {"from": "gpt", "value": "x" * 9}, {"from": "human", "value": "?"}]
    entries = [{"id": 1, "conversations": turns}, {"conversations": turns[:1]}, {"conversations": []}]
    path = write(tmp_path, json.dumps(entries), "share.json")
    assert read_dataset(path, None) == [Prompt("question", 3)]
    assert read_dataset(path, 7) == [Prompt("question", 7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "document: holds no prompt"),
        ("[]", "document: holds no prompt"),
        ('{"prompt": "a"}\n{', "line 2: is no JSON"),
        ("3", "line 1: is no object"),
        ("[3]", r"\[0\]: is no object"),
        ('{"text": "a"}', "line 1: has neither"),
        ('{"prompt": ""}', "line 1: has neither"),
        ('{"messages": []}', "line 1: has neither"),
        ('{"messages": [{"content": "a"}]}', "line 1: has neither"),
        ('{"prompt": "a", "output_len": 0}', "line 1.output_len: is no number of tokens"),
        ('{"prompt": "a", "output_len": true}', "line 1.output_len: is no number of tokens"),
        ('[{"conversations": [{"from": "human"}]}]', r"\[0\].conversations: is no list"),
        ("[" * 100_000, "document: is nested too deeply"),
    ],
)
def test_malformed_datasets(tmp_path, text, message):
    """With file and line."""
    with pytest.raises(MalformedFileError, match=message):
        read_dataset(write(tmp_path, text), None)


def test_datasets_that_cannot_be_read(tmp_path):
    """Missing, or no text."""
    with pytest.raises(ModelNotFoundError, match=r"no dataset .*nowhere"):
        read_dataset(tmp_path / "nowhere", None)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MalformedFileError, match="is no text in UTF-8"):
        read_dataset(tmp_path / "bytes", None)


def test_prompts_of_a_dataset_are_asked_once():
    """Some in a random order that the seed repeats, all in their own; never one twice."""
    prompts = [Prompt(str(number), 1) for number in range(20)]
    assert choose_prompts(prompts, None, generator()) == prompts
    some = choose_prompts(prompts, 12, generator(3))
    assert some == choose_prompts(prompts, 12, generator(3)) != prompts[:12]
    assert len({prompt.content for prompt in some}) == 12
    with pytest.raises(InvalidRequestError, match="--num-prompts 21: the dataset has 20"):
        choose_prompts(prompts, 21, generator())
    check_endpoint([Prompt(({"role": "user", "content": "a"},), 1)], "chat")
    with pytest.raises(InvalidRequestError, match="holds messages of chats"):
        check_endpoint([Prompt(({"role": "user", "content": "a"},), 1)], "completions")


def test_numbers_of_options():
    """Rates may be infinite, percentiles have bounds, objectives have names; nothing twice."""
    assert parse_positive("--request-rate", "inf") == float("inf")
    assert parse_percentiles("50, 99.9,50") == (50, 99.9)
    assert parse_metrics("TTFT,itl,ttft") == ("ttft", "itl")
    assert parse_objectives(["ttft:500,tpot:50", "e2el:1e3"]) == {"ttft": 500, "tpot": 50, "e2el": 1000}
    assert parse_extra_body('{"top_k": 4}') == {"top_k": 4}
    assert parse_extra_body(None) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_positive("--request-rate", "0"), "--request-rate: '0' is no positive number"),
        (lambda: parse_positive("--burstiness", "nan"), "--burstiness: 'nan' is no positive number"),
        (lambda: parse_percentiles("50,101"), "'101' is no percentile"),
        (lambda: parse_percentiles(""), "'' is no percentile"),
        (lambda: parse_metrics("ttfx"), "unknown metric 'ttfx'"),
        (lambda: parse_objectives(["itl:3"]), "'itl:3' is no objective"),
        (lambda: parse_objectives(["ttft"]), "'ttft' is no objective"),
        (lambda: parse_objectives(["ttft:-1"]), "'ttft:-1' is no objective"),
        (lambda: parse_objectives(["ttft:1", "ttft:2"]), "ttft is given twice"),
        (lambda: parse_extra_body("{"), "is no JSON"),
        (lambda: parse_extra_body("[]"), "is no JSON object"),
    ],
)
def test_options_out_of_bounds(call, message):
    """With the value."""
    with pytest.raises(InvalidRequestError, match=message):
        call()


def test_keys_from_files_and_the_environment(tmp_path, monkeypatch):
    """File before environment, ours before OpenAI's; what cannot be a key is not sent, nor shown."""
    monkeypatch.delenv("PIO_SERVE_API_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert read_key(None) == "theirs"
    monkeypatch.setenv("PIO_SERVE_API_KEY", " ours ")
    assert read_key(None) == "ours"
    assert read_key(write(tmp_path, "secret\nnote\n", "key")) == "secret"
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_key(tmp_path / "nowhere")
    with pytest.raises(InvalidRequestError, match="holds no key"):
        read_key(write(tmp_path, "\n", "empty"))
    monkeypatch.setenv("PIO_SERVE_API_KEY", "two words\r\nx: y")
    with pytest.raises(InvalidRequestError, match="PIO_SERVE_API_KEY holds no key") as caught:
        read_key(None)
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "host", "key", "warned"),
    [
        ("http", "example.org", "k", True), ("https", "example.org", "k", False), ("http", "example.org", None, False),
        ("http", "127.0.0.1", "k", False), ("http", "localhost", "k", False), ("http", "::1", "k", False),
    ],
)  # fmt: skip
def test_keys_in_the_clear_are_warned_of(scheme, host, key, warned):
    """But not on this machine."""
    assert (check_secret_url(scheme, host, key) is not None) == warned
