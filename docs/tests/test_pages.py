"""The commands and examples of the README and the quickstart do what the page says they do."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent
PAGES = [DOCS.parent / "README.md", DOCS / "quickstart.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytest.importorskip("inference_pio.cli", reason="needs the pio command, which `nox -s docs` installs")
pytest.importorskip("torch", reason="needs torch, which `nox -s docs` installs")


def blocks(language):
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (found, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if found == language
    ]


def commands():
    lines = [line for block in blocks("sh") for line in block.values[0].splitlines()]
    return sorted({match[0] for line in lines if (match := re.search(r"\bpio \w.*", line))})


@pytest.mark.parametrize("code", blocks("python"))
def test_an_example_runs(code):
    """As it is written, in a fresh process, without a word on stderr that is a warning."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", commands())
def test_a_command_runs(command, tmp_path):
    """As it is written, in a folder without settings, and says something on stdout."""
    pio = shutil.which("pio", path=Path(sys.executable).parent)
    assert pio is not None
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "120"}
    arguments = [pio, *shlex.split(command)[1:]]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    if command.startswith("pio run") and "France" in command:
        assert "Paris" in done.stdout


def test_the_readme_has_its_two_commands():
    """Exactly as a stranger would type them; the second one is what CI runs."""
    text = PAGES[0].read_text(encoding="utf-8")
    for command in ('uv run pio run "Name the capital of France."', "uv run nox"):
        assert f"```sh\npython -m pip install uv && {command}\n```" in text
    assert (DOCS.parent / ".ci" / "run").read_text(encoding="utf-8").endswith("\nuv run nox\n")
