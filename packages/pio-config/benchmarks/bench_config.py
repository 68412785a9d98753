"""What configuration costs at start-up: importing, loading settings, reading a model's config.

    python benchmarks/bench_config.py [--json FILE] [--quick]

Medians. Times of fresh interpreters are differences to an interpreter that runs nothing, measured in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from inference_pio.config import build_config, gguf_to_hf, load_settings, parse_rope, read_json, read_model_config
from inference_pio.interfaces import RopeParameters  # noqa: TC001 - msgspec reads the annotation at run time

if TYPE_CHECKING:
    from collections.abc import Callable

Size = Annotated[int, Meta(ge=1)]

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
    "vocab_size": 128256,
}


class Llama(msgspec.Struct, frozen=True, kw_only=True):
    """A family's config of the usual size."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    vocab_size: Size
    max_position_embeddings: Size
    rms_norm_eps: float
    hidden_act: str
    rope: RopeParameters


def fresh_interpreters(programs: dict[str, str], repeats: int) -> dict[str, tuple[float, float]]:
    """Median wall and processor seconds of each program in its own interpreter, the programs taking turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start, before = time.perf_counter(), os.times()
            subprocess.run([sys.executable, "-c", program], check=True)
            end, after = time.perf_counter(), os.times()
            busy = after.children_user + after.children_system - before.children_user - before.children_system
            times[name].append((end - start, busy))
    return {
        name: (statistics.median(wall for wall, _ in pairs), statistics.median(busy for _, busy in pairs))
        for name, pairs in times.items()
    }


def import_results(started: dict[str, tuple[float, float]]) -> list[dict[str, object]]:
    """What each import adds to an interpreter that runs nothing, in wall and in processor time."""
    return [
        {
            "name": f"import {module}, {kind}",
            "value": 1e3 * (started[module][index] - started["nothing"][index]),
            "unit": "ms",
        }
        for module in ("inference_pio.config", "msgspec")
        for index, kind in enumerate(("wall", "processor"))
    ]


def median_call(function: Callable[[], object], repeats: int) -> float:
    """Median seconds of one call, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(folder: Path, *, quick: bool) -> list[dict[str, object]]:
    """All results; files go under ``folder``."""
    (folder / "pio.toml").write_text('dtype = "float32"\nthreads = 2\n')
    (folder / "config.json").write_text(json.dumps(LLAMA))
    vocabulary = folder / "tokenizer.json"
    vocabulary.write_text(json.dumps({"vocab": {f"token{i}": i for i in range(150_000)}}))
    env = {"HOME": str(folder), "PIO_SEED": "1"}
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 16,
        "llama.context_length": 131072,
        "llama.embedding_length": 2048,
        "llama.feed_forward_length": 8192,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": 128256,
    }
    calls = 20 if quick else 300
    modules = ("inference_pio.config", "msgspec")
    programs = {"nothing": ""} | {module: f"import {module}" for module in modules}
    started = fresh_interpreters(programs, 3 if quick else 25)
    read_seconds = median_call(lambda: read_json(vocabulary, max_bytes=1 << 26), 3 if quick else 15)
    stdlib_seconds = median_call(lambda: json.loads(vocabulary.read_bytes()), 3 if quick else 15)
    timed = {
        "load_settings (project file, environment, flag)": median_call(
            lambda: load_settings(env=env, cwd=folder, flags={"threads": "4"}), calls
        ),
        "read_model_config": median_call(lambda: read_model_config(folder), calls),
        "build_config": median_call(lambda: build_config(Llama, LLAMA), calls),
        "parse_rope (llama3)": median_call(lambda: parse_rope(LLAMA, max_position=131072), calls),
        "gguf_to_hf": median_call(lambda: gguf_to_hf(metadata, architecture="LlamaForCausalLM"), calls),
    }
    return [
        *import_results(started),
        *({"name": name, "value": 1e6 * seconds, "unit": "us"} for name, seconds in timed.items()),
        {"name": "read_json (150,000 keys)", "value": 1e3 * read_seconds, "unit": "ms"},
        {"name": "json.loads of the same file, unchecked", "value": 1e3 * stdlib_seconds, "unit": "ms"},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("--quick", action="store_true", help="few repetitions, rough figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), quick=options.quick)
    for result in results:
        print(f"{result['name']:<50} {result['value']:>10.1f} {result['unit']}")
    report = {
        "benchmark": "config",
        "package": "pio-config",
        "results": results,
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()},
    }
    line = json.dumps(report)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
