"""The README's examples run against the server that they are about, and print what they say."""

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
def test_readme_example(code, served, capsys):
    """Each example prints what the comments behind its prints begin with, and nothing else."""
    there = code.replace("http://127.0.0.1:8000", served.url).replace('api_key="none"', f'api_key="{served.key}"')
    exec(compile(there, str(README), "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102 - our own README
    printed = capsys.readouterr().out.splitlines()
    comments = re.findall(r"^ *print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
    assert len(comments) == len(printed) > 0
    for line, comment in zip(printed, comments, strict=True):
        assert comment == line or comment.startswith(f"{line}:")
