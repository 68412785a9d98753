"""What a terminal sees beside the answer: progress, confirmations, and nothing where nobody looks."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from inference_pio.cli._output import as_count, as_size, shows_progress
from inference_pio.cli._progress import byte_progress, status

pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")


def seen(*arguments: object, **variables: str) -> str:
    """All that ``python`` with ``arguments`` writes to a terminal."""
    env = {**os.environ, "TERM": "xterm", **variables}
    child = pexpect.spawn(
        sys.executable, [str(item) for item in arguments], env=env, encoding="utf-8", timeout=60, dimensions=(40, 120)
    )
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0, child.before
    text: str = child.before
    return text


def test_loading_is_shown_and_wiped(tiny_model):
    """A line while the model loads, which is gone when the answer comes."""
    text = seen("-m", "inference_pio.cli", "run", "hi", "-m", tiny_model)
    assert f"loading {tiny_model} ...\r\x1b[K" in text
    assert text.endswith("ABCDEFGHIJKLMNOPQRSTUVWXYZ\r\n")


@pytest.mark.parametrize(
    ("flags", "variables", "shown"),
    [
        ([], {}, True),
        ([], {"PIO_NO_PROGRESS": "0"}, True),
        (["--no-progress"], {}, False),
        (["-q"], {}, False),
        ([], {"PIO_NO_PROGRESS": "1"}, False),
        ([], {"TERM": "dumb"}, False),
    ],
)
def test_progress_can_be_switched_off(pio, tiny_model, monkeypatch, flags, variables, shown):
    """By flag, by environment, and on terminals that cannot move the cursor."""
    monkeypatch.setattr("inference_pio.cli._output.is_terminal", lambda stream: stream is sys.stderr)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    done = pio("run", "hi", "-m", tiny_model, *flags)
    assert done.out == "ABCDEFGHIJKLMNOPQRSTUVWXYZ\n"
    assert ("loading" in done.err) is shown


BAR = """
import time
from inference_pio.cli._progress import byte_progress
with byte_progress("fetching a thing", wanted=True) as callback:
    for done in range(0, 101, 10):
        callback(done * 2**20, 100 * 2**20)
        time.sleep(0.06)
print("done")
"""


def test_bar_appears_for_work_that_takes_a_while():
    """Description and sizes; colours unless NO_COLOR is set."""
    text = seen("-c", BAR)
    assert "fetching a thing" in text
    assert "/100.0 MiB" in text
    assert "\x1b[3" in text
    plain = seen("-c", BAR, NO_COLOR="1")
    assert "fetching a thing" in plain
    assert "\x1b[3" not in plain


def test_bars_and_status_share_the_line():
    """A status gives way to a bar, and a bar that is full to the next one; nothing of them is left at the end."""
    code = BAR.replace("import time", "import time\nfrom inference_pio.cli._progress import status")
    code = code.replace(
        "with byte", "with status('loading ...', wanted=True), byte_progress('second', wanted=True) as next_one, byte"
    )
    code = code.replace(
        'print("done")', "    for done in range(0, 101, 10): next_one(done, 100); time.sleep(0.06)\nprint('done')"
    )
    text = seen("-c", code)
    assert text.startswith("loading ...\r\x1b[K")
    assert text.index("fetching a thing") < text.index("second")
    assert "fetching a thing" not in text[text.index("second") :]
    assert text.rstrip().endswith("done")


def test_control_characters_are_spelled_out_on_a_terminal_only(monkeypatch, capsys):
    """A model, or a file's name, must not move the cursor or answer for the user; a pipe gets the text as it is."""
    from inference_pio.cli import _output

    text = "a\x1b[2Jb\x9b1mc\td\r\n"
    _output.write(text)
    assert capsys.readouterr().out == text
    _output.note(text)
    assert capsys.readouterr().err == "a\\x1b[2Jb\\x9b1mc\td\n\n"
    monkeypatch.setattr(_output, "is_terminal", lambda _stream: True)
    _output.write(text)
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x9b1mc\td\n"
    _output.write_json({"text": text})
    written = capsys.readouterr().out
    assert written.isprintable() or written.rstrip("\n").isprintable()
    assert json.loads(written) == {"text": text}


def test_characters_beyond_the_encoding_are_replaced(monkeypatch):
    """An old terminal loses a character, not the answer; JSON loses nothing."""
    from inference_pio.cli import _output

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    _output.write("né → 中\n")
    _output.write_json({"text": "né → 中"})
    lines = raw.getvalue().splitlines()
    assert lines[0] == "né ? ?".encode("latin-1")
    assert json.loads(lines[1]) == {"text": "né → 中"}


def test_short_work_shows_no_bar():
    """What is over at once needs no bar, and no library to draw one."""
    text = seen("-c", BAR.replace("time.sleep(0.06)", "pass") + "import sys; print('rich' in sys.modules)")
    assert text == "done\r\nFalse\r\n"


def test_without_a_terminal_there_is_no_progress(capsys):
    """A callback would only cost time."""
    assert not shows_progress(wanted=True)
    with byte_progress("x", wanted=True) as callback, status("y", wanted=True):
        assert callback is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("n", False), ("", False)])
def test_rm_asks_on_a_terminal(pio, fake_hub, tiny_model, monkeypatch, tmp_path, answer, gone):
    """No is the default, and no error."""
    fake_hub.serve_folder("org/reciter", tiny_model)
    monkeypatch.setenv("PIO_HUB_ENDPOINT", fake_hub.url)
    assert pio("pull", "org/reciter").code == 0
    child = pexpect.spawn(
        sys.executable, ["-m", "inference_pio.cli", "rm", "org/reciter"], encoding="utf-8", timeout=60
    )
    child.expect(r"remove org/reciter \(.* KiB\)\? \[y/N\]")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert (tmp_path / "xdg-cache" / "pio" / "models" / "org--reciter").exists() is not gone


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (95_800_000, "91.4 MiB"), (2**40 * 5000, "5000.0 TiB")],
)
def test_sizes_for_people(count, text):
    """Binary units."""
    assert as_size(count) == text


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (1500, "1.5K"), (134_515_008, "134.5M"), (7.2e9, "7.2B")])
def test_counts_for_people(count, text):
    """Decimal units."""
    assert as_count(count) == text
