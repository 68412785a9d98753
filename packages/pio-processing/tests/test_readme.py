"""The README's examples run as they are written."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_readme_has_examples():
    """Were the examples to go, the test below would pass without running any."""
    assert len(BLOCKS) == 6


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_example(code, capsys):
    """Each example runs, and prints what its comments say."""
    exec(compile(code, str(README), "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102 - our own README
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    expected = re.findall(r"(?:^ *print\(.*\)  |^)# (.+)$", code, flags=re.MULTILINE)
    assert expected
    assert printed == expected
