"""The README's examples run, and print what they say; its table names every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inference_pio.benchmarks._command import COMMANDS

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_readme_has_examples():
    """Were the examples to go, the test below would pass without running any."""
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_example(code, capsys):
    """Each example prints what the comments behind its prints say, and nothing else."""
    exec(compile(code, "README.md", "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102 - our own README
    comments = re.findall(r"^ *print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == comments


def test_readme_names_every_command():
    """The table is the map of the group."""
    assert re.findall(r"^\| `pio bench (\w+)", TEXT, flags=re.MULTILINE) == list(COMMANDS)
