"""What a user can get wrong: one line that names the value and the way out, the documented exit code, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest

RECITED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, shells or devices")


def assert_one_line(done, code: int, *parts: str) -> None:
    """The contract of every error."""
    assert done.code == code, done
    assert done.err.startswith("pio: error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["rnu"], 2, ["no command 'rnu'", "did you mean 'run'?"]),
        (["frobnicate"], 2, ["no command 'frobnicate'", "commands are run, chat"]),
        (["run", "--temprature", "1"], 2, ["no option --temprature", "did you mean --temperature?"]),
        (["run", "--zzz"], 2, ["no option --zzz", "see 'pio run --help'"]),
        (["run", "a", "b"], 2, ["unexpected extra argument", "see 'pio run --help'"]),
        (["pull"], 2, ["missing argument 'MODEL'", "see 'pio pull --help'"]),
        (["run", "--model"], 2, ["'--model' requires an argument"]),
        (["run", "hi", "--temperature", "-1"], 2, ["flag --temperature", "0 to 100", "'-1'"]),
        (["run", "hi", "--temperature", "warm"], 2, ["flag --temperature", "number", "'warm'"]),
        (["run", "hi", "--temperature", "nan"], 2, ["flag --temperature", "finite", "'nan'"]),
        (["run", "hi", "--top-p", "0"], 2, ["flag --top-p", "'0'"]),
        (["run", "hi", "--max-tokens", "0"], 2, ["flag --max-tokens", "'0'"]),
        (["run", "hi", "--dtype", "float33"], 2, ["flag --dtype", "'float33'", "did you mean 'float32'?"]),
        (["run", "hi", "--threads", "0"], 2, ["flag --threads", "'0'"]),
        (["run", "hi", "--set", "temprature=1"], 2, ["'temprature'", "did you mean 'temperature'?"]),
        (["run", "hi", "--set", "temperature"], 2, ["expected KEY=VALUE", "'temperature'"]),
        (["run", "hi", "--temperature", "1", "--set", "temperature=1"], 2, ["temperature is given twice"]),
        (["run", "hi", "--set", "n=2"], 2, ["unknown setting 'n'"]),
        (["run", ""], 2, ["the prompt is empty"]),
        (["run", "bad \udce4 bytes"], 2, ["not UTF-8 text at character 4"]),
        (["run", "hi", "-m", "smollm2-135m-instrct"], 3, ["no model named", "did you mean 'smollm2-135m-instruct'?"]),
        (["run", "hi", "-m", "./nowhere.gguf"], 3, ["'./nowhere.gguf'", "check the path"]),
        (["show", "no-such-model"], 3, ["'no-such-model'"]),
        (["show", "org/never-pulled"], 3, ["'org/never-pulled' is not on this machine", "pio pull org/never-pulled"]),
        (["pull", "not an id"], 3, ["'not an id' is not a hub id", "owner/name"]),
        (["rm", "org/none", "-y"], 3, ["no fetched model 'org/none'", "nothing has been fetched yet"]),
        (["config", "show", "--set", "modle=x"], 2, ["'modle'", "did you mean 'model'?"]),
    ],
)
def test_wrong_usage_and_wrong_names(pio, arguments, code, parts):
    """Named value, way out, exit code; before anything heavy is loaded."""
    assert_one_line(pio(*arguments), code, *parts)


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("stop=5", ["stop must be a string or a list of strings, got 5"]),
        ('stop=["a", 5]', ["stop must be a string or a list of strings, got ['a', 5]"]),
        ('stop={"a": 1}', ["stop must be"]),
        ('stop=[""]', ["stop must not contain an empty string"]),
        ("stop_token_ids=x", ["stop_token_ids must be a list of non-negative integers, got 'x'"]),
        ("stop_token_ids=[999]", ["token id 999", "vocabulary of 258"]),
        ("repetition_penalty=0", ["repetition_penalty must be at least 0.01", "got 0"]),
        ("ignore_eos=1", ["ignore_eos must be True or False, got 1"]),
    ],
)
def test_sampling_parameters_of_the_wrong_type(pio, tiny_model, assignment, parts):
    """Checked by the engine's own rules, told by the command line's."""
    assert_one_line(pio("run", "hi", "-m", tiny_model, "--set", assignment), 2, *parts)


def test_prompt_over_the_context(pio, tiny_model):
    """Both numbers, and no attempt to cut the prompt."""
    done = pio("run", "x" * 200, "-m", tiny_model, "--max-model-len", 100)
    assert_one_line(done, 2, "the prompt has 219 tokens", "the context holds 100", "shorten the prompt")


def test_no_prompt_at_all(pio_process, tiny_model):
    """An empty standard input is no prompt."""
    assert_one_line(pio_process("run", "-m", tiny_model), 2, "no prompt", 'pio run "Hello"')
    assert_one_line(pio_process("run", "-m", tiny_model, stdin=b" \n"), 2, "the prompt is empty")


def test_standard_input_that_is_no_text(pio, tiny_model):
    """Binary input is refused with the place of the first bad byte."""
    done = pio("run", "-", "-m", tiny_model, stdin=b"abc\xff\xfe")
    assert_one_line(done, 2, "standard input is not UTF-8 text at byte 3")


@pytest.fixture
def broken(tiny_model, tmp_path):
    """A copy of the model to break."""
    return shutil.copytree(tiny_model, tmp_path / "broken")


def test_missing_weight_file(pio, broken):
    """The folder is named."""
    (broken / "model.safetensors").unlink()
    done = pio("run", "hi", "-m", broken)
    assert done.code in {1, 3}
    assert_one_line(done, done.code, str(broken))


def test_truncated_weight_file(pio, broken):
    """The file is named; nothing is loaded from it."""
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert_one_line(pio("run", "hi", "-m", broken), 1, str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,999999]}}    ' + b" ",
    ],
)
def test_hostile_safetensors_file(pio, broken, content):
    """Headers that lie about sizes and places are refused, whatever they say."""
    path = broken / "model.safetensors"
    path.write_bytes(content)
    assert_one_line(pio("run", "hi", "-m", broken), 1, str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"NOPE" + bytes(60),
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62),
        b"GGUF\x03\0\0\0" + b"\xff" * 64,
    ],
)
def test_hostile_gguf_file(pio, tmp_path, content):
    """The same for GGUF."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    for command in (("run", "hi", "-m", path), ("show", path)):
        assert_one_line(pio(*command), 1, str(path))


def test_unknown_config_key_names_the_way_out_and_the_way_out_works(pio, broken):
    """What a plugin does not know could change the model's meaning, so it is the user's decision."""
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hiden_size": 64}))
    assert_one_line(pio("run", "hi", "-m", broken), 2, "'hiden_size'", "hidden_size")
    done = pio("run", "hi", "-m", broken, "--set", "ignore_unknown_keys=true")
    assert (done.code, done.out) == (0, RECITED + "\n")


def test_config_that_asks_to_run_code_is_refused(pio, broken):
    """``auto_map`` names Python files of the model; they are never run."""
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    assert_one_line(pio("run", "hi", "-m", broken), 1, "auto_map")


def test_unknown_architecture_says_what_is_installed(pio, broken):
    """A missing plugin is exit code 5."""
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    assert_one_line(pio("run", "hi", "-m", broken), 5, "'NoSuchForCausalLM'", "LlamaForCausalLM")


def test_no_memory_for_the_model(pio, tiny_model, monkeypatch):
    """Exit code 4, with what is needed and what there is."""
    for executor in ("native", "torch"):
        monkeypatch.setattr(f"inference_pio.core.{executor}_executor.available_memory", lambda: 1000)
        done = pio("run", "hi", "-m", tiny_model, "--executor", executor)
        assert_one_line(done, 4, "reciter", "available")


def test_no_memory_in_the_middle(pio, tiny_model, monkeypatch):
    """Python's own word for it has the same exit code."""

    def fail(*_args: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("inference_pio.core.LLM.chat_stream", fail)
    assert_one_line(pio("run", "hi", "-m", tiny_model), 4, "out of memory")


def test_missing_device(pio, tiny_model):
    """Hardware that is not here is exit code 5, a word that is no device 2."""
    torch = pytest.importorskip("torch", reason="the torch executor is what knows devices")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert_one_line(pio("run", "hi", "-m", tiny_model, "--device", "cuda"), 5, "cuda")
    assert_one_line(pio("run", "hi", "-m", tiny_model, "--device", "abacus"), 2, "abacus")


@pytest.mark.parametrize("command", [("pull", "org/tiny"), ("run", "hi", "-m", "org/tiny")])
def test_unreachable_hub(pio, monkeypatch, command, tmp_path):
    """The address, the reason and the way out; no half model."""
    monkeypatch.setenv("PIO_HUB_ENDPOINT", "http://127.0.0.1:9")
    done = pio(*command)
    assert_one_line(done, 1, "cannot fetch org/tiny from http://127.0.0.1:9", "refused", "check the network")
    models = tmp_path / "xdg-cache" / "pio" / "models"
    assert [path.name for path in models.glob("*") if not path.name.startswith(".")] == []


def test_error_is_an_object_with_json(pio):
    """A program that reads standard output learns the same as a person that reads standard error."""
    done = pio("run", "hi", "--json", "-m", "smollm2-135m-instrct")
    assert_one_line(done, 3, "no model named")
    assert done.json == {
        "error": {
            "type": "ModelNotFoundError",
            "message": "no model named 'smollm2-135m-instrct'",
            "hint": "did you mean 'smollm2-135m-instruct'?",
            "exit_code": 3,
        }
    }


def test_json_as_a_prompt_is_no_flag(pio):
    """What follows ``--`` is text."""
    assert pio("run", "-m", "no-such-model", "--", "--json").out == ""


def test_traceback_only_when_asked(pio, monkeypatch):
    """``PIO_DEBUG=1`` shows where; ``PIO_DEBUG=0`` does not."""
    monkeypatch.setenv("PIO_DEBUG", "1")
    shown = pio("run", "hi", "-m", "no-such-model")
    assert shown.code == 3
    assert "Traceback" in shown.err
    assert shown.err.splitlines()[-1].startswith("pio: error: no model named")
    monkeypatch.setenv("PIO_DEBUG", "0")
    assert_one_line(pio("run", "hi", "-m", "no-such-model"), 3)


def test_a_bug_is_one_line_too(pio, tiny_model, monkeypatch):
    """Whatever goes wrong inside, the terminal stays readable, and the way to the traceback is named."""

    def fail(*_args: object, **_options: object) -> None:
        raise TypeError("first line\nsecond line")

    monkeypatch.setattr("inference_pio.core.LLM.chat_stream", fail)
    done = pio("run", "hi", "-m", tiny_model)
    assert_one_line(done, 1, "internal error: TypeError: first line second line", "PIO_DEBUG=1")


def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """A command in a process of its own, with pipes."""
    command = [sys.executable, "-m", "inference_pio.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


ENDLESS = ("--max-tokens", "none", "--set", "ignore_eos=true", "--threads", "1")


@posix
def test_reader_that_goes_away_ends_it_quietly(tiny_model):
    """``pio run ... | head -c1``: no message, no traceback, the exit code of a broken pipe."""
    process = start("run", "hi", "-m", tiny_model, *ENDLESS)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == b"A"
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == 141
    assert errors == b""
    process.stderr.close()


@posix
@pytest.mark.parametrize("redirection", [">&-", "> /dev/full"])
def test_stdout_that_cannot_be_written(tiny_model, redirection, tmp_path):
    """Closed from the start, or full: an error, since the answer is lost."""
    script = f'exec "{sys.executable}" -m inference_pio.cli run hi -m "{tiny_model}" {redirection}'
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {1, 2}
    assert done.stderr.startswith("pio: error: ")
    assert done.stderr.count("\n") == 1
    assert "closed" in done.stderr or "No space left" in done.stderr


@posix
def test_ctrl_c_ends_a_stream_cleanly(tiny_model):
    """Exit code 130; what was written stays, the line is ended, and nothing else is said."""
    process = start("run", "hi", "-m", tiny_model, *ENDLESS)
    assert process.stdout is not None
    first = process.stdout.read(30)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).startswith(f"{RECITED}ABCD".encode())
    assert rest.endswith(b"\n")
    assert err == b""


@posix
@pytest.mark.parametrize("flag", ["--no-stream", "--json"])
def test_ctrl_c_ends_an_unstreamed_answer_cleanly(tiny_model, flag):
    """What was generated so far is written, as text or as an object that says so."""
    for delay_s in (0.5, 4.0, 15.0):  # how long the first token takes depends on who else is busy
        process = start("run", "hi", "-m", tiny_model, *ENDLESS, flag, "-v")
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"reciter: ")  # loaded
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in err
        assert b"error" not in err
        found = json.loads(out or "{}") if flag == "--json" else {"text": out.decode(), "finish_reason": "abort"}
        if len(found.get("text", "")) > len(RECITED):
            break
    assert found["text"].startswith(RECITED)
    assert found["finish_reason"] == "abort"
    assert out.endswith(b"\n")


@posix
@pytest.mark.parametrize("delay_s", [0.25, 0.8, 1.6])
def test_ctrl_c_while_loading_is_quiet(tiny_model, delay_s):
    """Libraries are being imported or weights read: exit code 130 and silence all the same."""
    script = (
        "import sys, os; os.write(2, b'started\\n'); from inference_pio.cli import main; "
        f"sys.exit(main(['run', 'hi', '-m', {str(tiny_model)!r}, '--max-tokens', 'none', '--set', 'ignore_eos=true']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"started\n"
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""
