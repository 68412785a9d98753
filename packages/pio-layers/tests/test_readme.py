"""The README's examples run as they are written."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_example_runs(block):
    """Each block stands alone: its own imports, its own assertions."""
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - the documentation is what is tested


def test_readme_has_examples():
    """A README whose blocks are not found would pass without testing anything."""
    assert len(BLOCKS) == 3
