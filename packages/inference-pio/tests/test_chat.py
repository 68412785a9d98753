"""``pio chat``: piped, and on a terminal of its own."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

RECITED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_piped_lines_are_answered_one_by_one(pio, tiny_model):
    """Answers on standard output, no prompt signs, no greeting."""
    done = pio("chat", "-m", tiny_model, stdin=b"hello\nand again\n")
    assert (done.code, done.out, done.err) == (0, f"{RECITED}\n{RECITED}\n", "")


def prompt_tokens(done) -> list[int]:
    """Tokens of each prompt of a chat with ``--json``."""
    return [json.loads(line)["usage"]["prompt_tokens"] for line in done.out.splitlines()]


def rendered(*messages: tuple[str, str]) -> int:
    """Tokens of the conversation as the model's template renders it."""
    return sum(len(f"{role}\n{text}\n".encode()) + 2 for role, text in messages) + len("assistant\n") + 1


def test_conversation_is_remembered_until_it_is_cleared(pio, tiny_model):
    """Each prompt holds all that was said; /clear forgets it."""
    done = pio("chat", "-m", tiny_model, "--json", stdin=b"one\ntwo\n/clear\nthree\n")
    first = ("user", "one"), ("assistant", RECITED), ("user", "two")
    assert prompt_tokens(done) == [rendered(first[0]), rendered(*first), rendered(("user", "three"))]
    assert done.err == "the conversation is forgotten\n"


def test_a_turn_finds_those_before_it_in_the_cache(pio, tiny_model):
    """Of the second prompt, all whole pages of the first turn are known; the statistics say so, and can be off."""
    lines = b"a question of some length\nand another\n"
    answers = [json.loads(line) for line in pio("chat", "-m", tiny_model, "--json", stdin=lines).out.splitlines()]
    first = answers[0]["usage"]
    assert first["cached_tokens"] == 0
    turn = first["prompt_tokens"] + first["completion_tokens"] - 1  # the last token was never read
    assert turn - 16 < answers[1]["usage"]["cached_tokens"] <= turn
    assert (
        f"prompt tokens ({answers[1]['usage']['cached_tokens']} cached), "
        in pio("chat", "-m", tiny_model, "--stats", stdin=lines).err
    )
    without = pio("chat", "-m", tiny_model, "--json", "--set", "enable_prefix_caching=false", stdin=lines).out
    assert [json.loads(line)["usage"]["cached_tokens"] for line in without.splitlines()] == [0, 0]


def test_message_of_several_lines(pio, tiny_model):
    """Between triple quotes, line ends are part of the message; blank lines outside are no messages."""
    done = pio("chat", "-m", tiny_model, "--json", stdin=b'\n"""one\n\ntwo"""\n   \n')
    assert prompt_tokens(done) == [rendered(("user", "one\n\ntwo"))]


def test_set_changes_the_next_answer(pio, tiny_model):
    """Sampling parameters and the system prompt; the model stays."""
    lines = (
        b'/set max_tokens 3\nhi\n/set stop ["B"]\nhi\n/set stop none\n/set system be brief\n/clear\nhi\n/set system\n'
    )
    done = pio("chat", "-m", tiny_model, "--json", stdin=lines)
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["ABC", "A", "ABC"]
    assert prompt_tokens(done)[-1] == rendered(("system", "be brief"), ("user", "hi"))
    assert "max_tokens = 3" in done.err
    assert "stop = ['B']" in done.err


def test_set_alone_shows_the_parameters(pio, tiny_model):
    """Greedy, as pio run would be."""
    shown = pio("chat", "-m", tiny_model, "-s", "be brief", stdin=b"/set\n").err
    assert "temperature = 0.0\n" in shown
    assert "max_tokens = 512\n" in shown
    assert "system = be brief\n" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sett", "no command '/sett' (did you mean /set?)"),
        ("/zzzzzz", "commands are /help, /clear, /set, /exit"),
        ("/set temprature 1", "did you mean 'temperature'?"),
        ("/set dtype float16", "no parameter 'dtype' that can change in a conversation"),
        ("/set temperature -1", "temperature must be at least 0"),
        ("/set temperature", "temperature must be a number, got ''"),
        ("/set stop 5", "stop must be a string or a list of strings, got 5"),
    ],
)
def test_wrong_commands_end_a_script(pio, tiny_model, line, message):
    """Where nobody is there to correct it, an error is an error."""
    done = pio("chat", "-m", tiny_model, stdin=f"{line}\nhi\n".encode())
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_help_exit_and_paths(pio, tiny_model):
    """/help explains, /exit leaves, and a message may begin with a path."""
    done = pio("chat", "-m", tiny_model, stdin=b"/help\n/etc/hosts is what?\n/exit\nnever asked\n")
    assert (done.code, done.out) == (0, f"{RECITED}\n")
    assert "/clear" in done.err


def test_conversation_over_the_context_is_an_error_that_names_it(pio, tiny_model):
    """Nothing is dropped silently."""
    done = pio("chat", "-m", tiny_model, "--max-model-len", 60, stdin=b"hi\nhi\nhi\n")
    assert done.code == 2
    assert "the context holds 60" in done.err


def test_binary_input(pio, tiny_model):
    """One line, exit code 2."""
    done = pio("chat", "-m", tiny_model, stdin=b"\xff\xfe\n")
    assert done.code == 2
    assert "standard input is not UTF-8 text" in done.err


@pytest.fixture
def terminal(tiny_model):
    """Starts ``pio chat`` on a terminal."""
    pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")
    children = []

    def start(*arguments: str):
        command = ["-m", "inference_pio.cli", "chat", "-m", str(tiny_model), *arguments]
        env = {**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"}
        child = pexpect.spawn(sys.executable, command, env=env, encoding="utf-8", timeout=60, dimensions=(40, 200))
        children.append(child)
        child.expect("/help for help, Ctrl-D to leave")
        child.expect(">>> ")
        return child

    yield start
    for child in children:
        child.close(force=True)


ENDLESS = ("--max-tokens", "none", "--set", "ignore_eos=true", "--threads", "1")


def leave(child) -> int:
    """Wait for the end; returns the exit code."""
    import pexpect

    child.expect(pexpect.EOF)
    child.wait()
    return child.exitstatus


def test_terminal_conversation(terminal, tmp_path):
    """Prompt sign, answer, next prompt; Ctrl-D leaves with 0; the typed lines are remembered for the user alone."""
    child = terminal()
    child.sendline("hello there")
    child.expect(RECITED)
    child.expect(">>> ")
    child.sendline('"""one')
    child.expect(r"\.\.\. ")
    child.sendline('two"""')
    child.expect(RECITED)
    child.expect(">>> ")
    child.sendline("/sett")
    child.expect(r"pio: error: no command '/sett' \(did you mean /set\?\)")
    child.expect(">>> ")
    child.sendeof()
    assert leave(child) == 0
    history = tmp_path / "xdg-state" / "pio" / "chat_history"
    assert "hello there" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    again = terminal()
    again.send("\x1b[A\x1b[A\x1b[A\x1b[A")  # four times up: /sett, two, one, hello there
    again.expect("hello there")
    again.sendcontrol("u")
    again.sendline("/exit")
    assert leave(again) == 0


def test_ctrl_c_stops_the_answer_and_the_next_one_leaves(terminal):
    """The conversation goes on after the first; the second in a row, wherever the first one struck, ends it."""
    child = terminal(*ENDLESS)
    child.sendline("hello")
    child.expect(RECITED + RECITED)
    child.sendintr()
    child.expect(">>> ")
    child.sendline("/set max_tokens 4")
    child.expect("max_tokens = 4")
    child.expect(">>> ")
    child.sendline("more")
    child.expect("ABCD\r\n")
    child.expect(">>> ")
    child.sendintr()
    child.expect(r"\(Ctrl-C again, Ctrl-D or /exit leaves\)")
    child.expect(">>> ")
    child.sendline("/set max_tokens none")
    child.expect(">>> ")
    child.sendline("and more")
    child.expect(RECITED)
    child.sendintr()
    child.expect(">>> ")
    child.sendintr()
    assert leave(child) == 130


def test_stop_key_interrupts_at_the_second_press():
    """The first press only asks; the second does not wait for the next token."""
    import signal

    from inference_pio.cli._keyboard import stop_key

    before = signal.getsignal(signal.SIGINT)
    with stop_key() as key:
        assert not key()
        key.press(signal.SIGINT, None)
        assert key()
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            key.press(signal.SIGINT, None)
    assert signal.getsignal(signal.SIGINT) is before


def test_history_file_lies_in_the_state_folder(monkeypatch, tmp_path):
    """The XDG base directory specification, with its default."""
    from inference_pio.cli._keyboard import history_file

    assert history_file() == tmp_path / "xdg-state" / "pio" / "chat_history"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_file() == Path.home() / ".local" / "state" / "pio" / "chat_history"
