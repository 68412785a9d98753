"""What importing costs: everything above the executor stays free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import inference_pio.core

FOLDER = Path(inference_pio.core.__file__).parent


def test_importing_the_api_imports_no_torch():
    """A process that has imported the API has imported neither torch nor the hub's client."""
    code = "import sys, inference_pio.core; print([m for m in ('torch', 'huggingface_hub') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_only_the_modules_of_torch_name_it():
    """No other module imports torch, or a package built on it, not even inside a function."""
    heavy = {"torch", "inference_pio.layers", "inference_pio.attention"}
    for path in FOLDER.glob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module)
        assert path.name.startswith("torch_") == bool(imported & heavy), path.name
