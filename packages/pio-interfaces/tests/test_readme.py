import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_of_the_readme_runs(code):
    """As it is written, on its own."""
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text


def test_the_readme_has_examples():
    """Or the test above would test nothing."""
    assert len(BLOCKS) >= 2
