"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples_run(default_model_path, capsys):
    """The Python blocks run one after another in one namespace; what they assert holds, and each says something."""
    assert default_model_path.is_file()
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    namespace: dict[str, object] = {}
    printed = []
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)  # noqa: S102 - our own README
        printed.append(capsys.readouterr().out)
        assert printed[-1] or "assert" in block
    assert "Paris" in printed[0]
    assert "RequestMetrics(" in printed[1]
    assert printed[2].startswith("3 -")
    assert "'age': " in printed[4]
    assert printed[5].startswith("ToolCallDelta(index=0, name='note'")
    assert printed[6].endswith(" tokens were there\n")
