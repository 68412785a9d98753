"""The examples of the page on the engine run, one after another in one process, as the page says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "engine.md"

pytest.importorskip("torch", reason="needs torch, which `nox -s docs` installs")


def test_its_examples_run(tmp_path):
    """Without a warning on stderr; what they assert about outputs holds."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    assert code.count("assert ") >= 4
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "drafts were right" in done.stdout
    assert re.search(r"^The sea is ' a'$", done.stdout, re.MULTILINE)
