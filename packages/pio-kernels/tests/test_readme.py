"""The README's examples run as they are written, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_readme_examples(tmp_path, monkeypatch, capsys):
    """Each prints what its comments say; later ones use the names of earlier ones."""
    pytest.importorskip("safetensors", reason="the second example makes a checkpoint")
    pytest.importorskip("inference_pio.weights", reason="the second example opens a checkpoint")
    assert len(BLOCKS) >= 2
    monkeypatch.chdir(tmp_path)
    code = "\n".join(BLOCKS)
    exec(compile(code, str(README), "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102 - our own README
    told = re.findall(r"^ *print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == told
