"""Prefill and decode speed of the forward alone, on random weights of Qwen3-0.6B's layer sizes.

    python benchmarks/bench_forward.py [--json FILE] [--quick] [--threads N]

Eight of the 28 layers and a quarter of the vocabulary, so that the float32 checkpoint stays below 1 GB. A quick run
measures a tiny random checkpoint instead, to see that the script works.
"""

import tempfile
from pathlib import Path

from inference_pio.models.qwen3 import PLUGIN
from inference_pio.testing import forward_benchmark, tiny_checkpoint

SIZES = {
    "vocab_size": 37_984,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        forward_benchmark(PLUGIN, "pio-model-qwen3", lambda quick: checkpoint(Path(folder), quick=quick))


def checkpoint(folder: Path, *, quick: bool) -> Path:
    return tiny_checkpoint("qwen3", folder) if quick else tiny_checkpoint("qwen3", folder, dtype="bfloat16", **SIZES)


if __name__ == "__main__":
    main()
