"""Budgets: what importing and reading headers may bring along."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from safetensors.numpy import save_file

SCRIPT = """
import sys
from inference_pio.weights import open_weights
for path in sys.argv[1:]:
    source = open_weights(path)
    assert len(list(map(source.info, source))) == 1
heavy = {"torch", "safetensors", "gguf", "transformers", "tokenizers", "huggingface_hub"}
print(sorted(heavy & set(sys.modules)))
"""


def test_reading_headers_imports_no_torch(tmp_path, gguf_bytes):
    """NumPy is all that reading takes: no torch, and none of the formats' libraries."""
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "m.gguf").write_bytes(gguf_bytes([], [("w", [1], 0, 0)], bytes(32)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.safetensors"), str(tmp_path / "m.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
