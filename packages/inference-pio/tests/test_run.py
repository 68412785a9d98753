"""``pio run``: what is asked, what is written where, and which settings decide."""

from __future__ import annotations

import json
import shutil

import pytest

from inference_pio.cli._settings import sampling_params
from inference_pio.config import Settings
from inference_pio.interfaces import SamplingParams

RECITED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def prompt_tokens(done) -> int:
    """Tokens of the prompt; the model's tokens are bytes, so this is its rendered length, special tokens being one."""
    count = done.json["usage"]["prompt_tokens"]
    assert isinstance(count, int)
    return count


def rendered(*messages: tuple[str, str]) -> int:
    """Tokens of the conversation as the model's template renders it."""
    return sum(len(f"{role}\n{text}\n".encode()) + 2 for role, text in messages) + len("assistant\n") + 1


def test_answer_goes_to_stdout_and_nothing_else_does(pio, tiny_model):
    """The bare answer, its line ended; standard error stays empty where nobody asked for more."""
    done = pio("run", "hello", "-m", tiny_model)
    assert (done.code, done.out, done.err) == (0, RECITED + "\n", "")


def test_json_is_one_object_of_the_documented_shape(pio, tiny_model):
    """Keys, types and consistency of ``--json``."""
    done = pio("run", "hello", "-m", tiny_model, "--json")
    assert done.code == 0
    assert done.out.count("\n") == 1
    found = done.json
    assert list(found) == ["model", "text", "token_ids", "finish_reason", "executor", "usage", "timings"]
    assert (found["model"], found["text"], found["finish_reason"]) == ("reciter", RECITED, "stop")
    assert found["executor"] in {"native", "torch"}
    assert len(found["token_ids"]) == len(RECITED) + 1  # and the token that ended it
    assert found["usage"] == {"prompt_tokens": rendered(("user", "hello")), "completion_tokens": 27, "cached_tokens": 0}
    assert list(found["timings"]) == [
        "load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes",
    ]  # fmt: skip
    assert all(value > 0 for value in found["timings"].values())
    assert found["timings"]["peak_rss_bytes"] > 50 * 2**20
    assert found["timings"]["decode_tokens_per_s"] < 1e6


def test_streamed_json_is_one_document_per_token_and_the_object_last(pio, tiny_model):
    """A program can show tokens as they come and still get the summary."""
    lines = pio("run", "hello", "-m", tiny_model, "--json", "--stream", "--max-tokens", 3).out.splitlines()
    tokens, last = [json.loads(line) for line in lines[:-1]], json.loads(lines[-1])
    assert [token["text"] for token in tokens] == ["A", "B", "C"]
    assert [token["token_id"] for token in tokens] == last["token_ids"]
    assert (last["text"], last["finish_reason"]) == ("ABC", "length")


def test_without_streaming_the_same_is_written(pio, tiny_model):
    """``--no-stream`` changes when, not what."""
    assert pio("run", "hello", "-m", tiny_model, "--no-stream").out == RECITED + "\n"


@pytest.mark.parametrize("flag", ["--stats", "--usage", "-v"])
def test_statistics_go_to_stderr(pio, tiny_model, flag):
    """Asked for, one line of figures; standard output is as without them."""
    done = pio("run", "hello", "-m", tiny_model, flag)
    assert done.out == RECITED + "\n"
    figures = done.err.splitlines()[-1]
    assert figures.startswith(f"{rendered(('user', 'hello'))} prompt tokens, 27 new (stop) | load ")
    assert all(word in figures for word in ("first token", "prefill", "decode", "peak memory"))


def test_quiet_wins_over_statistics(pio, tiny_model):
    """``-q`` leaves standard error to errors."""
    assert pio("run", "hello", "-m", tiny_model, "-q", "--stats").err == ""


def test_verbose_tells_what_was_loaded(pio, tiny_model):
    """Architecture, size, dtype, device and context."""
    told = "reciter: LlamaForCausalLM, 51.6K parameters, 201.8 KiB in float32 on cpu, context 32768"
    lines = pio("run", "hello", "-m", tiny_model, "-v", "--executor", "torch").err.splitlines()
    assert lines[0].startswith(told)
    assert lines[-1].endswith("| torch executor, float32 on cpu")
    lines = pio("run", "hello", "-m", tiny_model, "-v", "--executor", "native").err.splitlines()
    assert " in F32 on cpu, context 32768" in lines[0]
    assert "| native executor, " in lines[-1]


@pytest.mark.parametrize("argument", [None, "-"])
def test_prompt_comes_from_standard_input(pio, tiny_model, argument):
    """Piped text is the prompt, without its last line end."""
    arguments = [] if argument is None else [argument]
    done = pio("run", *arguments, "-m", tiny_model, "--json", stdin="grüße\n".encode())
    assert prompt_tokens(done) == rendered(("user", "grüße"))


def test_piped_text_is_added_to_the_prompt(pio_process, tiny_model):
    """First what is asked, then what it is about, with an empty line between."""
    done = pio_process("run", "sum up:", "-m", tiny_model, "--json", stdin=b"one\ntwo\n")
    assert prompt_tokens(done) == rendered(("user", "sum up:\n\none\ntwo"))


def test_an_empty_pipe_adds_nothing(pio_process, tiny_model):
    """A prompt alone is enough, whatever standard input is."""
    assert prompt_tokens(pio_process("run", "hi", "-m", tiny_model, "--json", stdin=b"")) == rendered(("user", "hi"))


def test_raw_prompt_is_continued_as_it_stands(pio, tiny_model):
    """No template, no system prompt."""
    for flag in ("--raw", "--no-chat-template"):
        done = pio("run", "xyz A", "-m", tiny_model, "--json", flag, "--system", "be brief", "--max-tokens", 2)
        assert prompt_tokens(done) == len("xyz A")
        assert done.json["text"] == "BC"


def test_system_prompt_comes_first(pio, tiny_model):
    """From a flag or from the settings."""
    expected = rendered(("system", "be brief"), ("user", "hi"))
    assert prompt_tokens(pio("run", "hi", "-m", tiny_model, "--json", "-s", "be brief")) == expected


def test_settings_come_from_files_and_environment(pio, tiny_model, monkeypatch, tmp_path):
    """Project file under environment under flag."""
    (tmp_path / "work" / "pio.toml").write_text(f'model = "{tiny_model}"\nmax_tokens = 2\n')
    assert pio("run", "hi").out == "AB\n"
    monkeypatch.setenv("PIO_MAX_TOKENS", "3")
    assert pio("run", "hi").out == "ABC\n"
    assert pio("run", "hi", "--max-tokens", 4).out == "ABCD\n"
    assert pio("run", "hi", "--set", "max_tokens=5").out == "ABCDE\n"


def test_stop_strings_end_the_answer(pio, tiny_model):
    """By flag or by ``--set``; the stop string is not part of the answer."""
    assert pio("run", "hi", "-m", tiny_model, "--stop", "X", "--stop", "EF").out == "ABCD\n"
    assert pio("run", "hi", "-m", tiny_model, "--set", 'stop=["X", "EF"]').out == "ABCD\n"
    assert pio("run", "hi", "-m", tiny_model, "--set", "stop=EF").out == "ABCD\n"


def test_any_sampling_parameter_can_be_set(pio, tiny_model):
    """Those that are no settings too, with their own types."""
    done = pio("run", "hi", "-m", tiny_model, "--json", "--set", "ignore_eos=true", "--max-tokens", 40)
    assert done.json["finish_reason"] == "length"
    assert done.json["text"].startswith(RECITED + "ABC")
    banned = pio("run", "hi", "-m", tiny_model, "--json", "--set", 'logit_bias={"34": -100}', "--max-tokens", 3)
    assert banned.json["text"].startswith("AB")
    assert "C" not in banned.json["text"]


def test_unlimited_answer_goes_on_to_the_end_of_the_context(pio, tiny_model):
    """``--max-tokens none``: only the context ends it."""
    options = ("--max-tokens", "none", "--max-model-len", 64, "--set", "ignore_eos=true")
    done = pio("run", "hi", "-m", tiny_model, "--json", *options)
    usage = done.json["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 64
    assert done.json["finish_reason"] == "length"


def test_seed_makes_an_answer_repeatable(pio, tiny_model):
    """The same seed, the same answer; another seed, another one."""
    options = ("-m", tiny_model, "--raw", "--temperature", 100, "--max-tokens", 20, "--json")
    texts = [pio("run", "hi", *options, "--seed", seed).json["token_ids"] for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("said", "recommended", "expected"),
    [
        ({}, SamplingParams(), SamplingParams(temperature=0.0, max_tokens=512)),
        ({"seed": 3}, SamplingParams(), SamplingParams(temperature=0.0, seed=3, max_tokens=512)),
        ({"top_p": 0.9}, SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9, max_tokens=512)),
        ({"temperature": 0.5}, SamplingParams(), SamplingParams(temperature=0.5, max_tokens=512)),
        ({}, SamplingParams(temperature=0.6, top_k=20), SamplingParams(temperature=0.6, top_k=20, max_tokens=512)),
        ({"temperature": 0.0}, SamplingParams(top_k=20), SamplingParams(temperature=0.0, top_k=20, max_tokens=512)),
        ({"max_tokens": None}, SamplingParams(max_tokens=99), SamplingParams(temperature=0.0, max_tokens=None)),
    ],
)
def test_sampling_follows_the_user_then_the_model_then_greed(said, recommended, expected):
    """What was said holds; then what the model's authors recommend; a model without a recommendation is greedy."""
    assert sampling_params(Settings(**said), {}, recommended) == expected


def test_recommended_sampling_of_a_model_is_used(pio, tiny_model, tmp_path):
    """``generation_config.json`` decides where the user is silent."""
    folder = shutil.copytree(tiny_model, tmp_path / "warm")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 100.0}))
    options = ("-m", folder, "--raw", "--max-tokens", 20, "--seed", 1)
    assert pio("run", "A", *options).out != pio("run", "A", *options, "--temperature", 0).out
    assert pio("run", "A", *options, "--temperature", 0).out == "BCDEFGHIJKLMNOPQRSTU\n"
