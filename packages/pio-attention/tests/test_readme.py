"""The README's examples run, with nothing but this distribution and its dependencies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
FORBIDDEN = ("transformers", "pytest", "inference_pio.core", "inference_pio.weights", "inference_pio.processing")


def test_readme_python_blocks_run():
    """The python blocks run top to bottom in a fresh interpreter, as a reader would type them."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    check = f"import sys\nassert not set({FORBIDDEN!r}) & set(sys.modules)\n"
    script = "\n".join([*blocks, check])
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
