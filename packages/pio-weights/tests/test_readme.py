"""The README's examples run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_readme_has_examples():
    """Were the examples to go, the test below would pass without running any."""
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_example(code, tmp_path, monkeypatch, capsys):
    """Each example runs in an empty folder, and prints what its comments say."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102 - our own README
    printed = capsys.readouterr().out
    assert printed
    for expected in re.findall(r"^ +# (.*) \(\.\.\.\)$", code, flags=re.MULTILINE):
        assert expected in printed
