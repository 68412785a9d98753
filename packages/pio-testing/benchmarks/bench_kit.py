"""What the kit costs a test session: loading the pytest plugin, and writing and loading tiny checkpoints.

python benchmarks/bench_kit.py [--json FILE] [--quick]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

IMPORTS = {
    "python alone": "pass",
    "pytest plugin": "import inference_pio.testing.pytest_plugin",
    "writer of tiny checkpoints": "from inference_pio.testing import tiny_checkpoint",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What the kit costs a test session.")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--quick", action="store_true", help="few repeats")
    options = parser.parse_args()
    repeats = 2 if options.quick else 7
    results = [
        result(f"start: {name}", [seconds(lambda code=code: start(code)) for _ in range(repeats)])
        for name, code in IMPORTS.items()
    ]
    results += in_process(repeats)
    for row in results:
        print(f"{row['name']:<36} {row['value']:>9.1f} {row['unit']}")
    machine = {"system": platform.platform(), "python": platform.python_version()}
    record = json.dumps({"benchmark": "kit", "package": "pio-testing", "results": results, "machine": machine})
    if options.json is not None:
        options.json.write_text(record + "\n", encoding="utf-8")
    print(record)


def in_process(repeats: int) -> list[dict[str, object]]:
    from inference_pio.testing import load_reference, tiny_checkpoint, trace_reference, write_gguf

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = load_reference(tiny_checkpoint("llama", folder / "tiny"))  # the first one warms up
        steps: dict[str, Callable[[], object]] = {
            "write a tiny checkpoint": lambda: tiny_checkpoint("llama", folder / "tiny"),
            "write it as GGUF": lambda: write_gguf(folder / "tiny", folder / "tiny.gguf"),
            "load it in transformers": lambda: load_reference(folder / "tiny"),
            "transformers' logits of 96 tokens": lambda: trace_reference(reference, range(96)),
        }
        return [result(name, [seconds(step) for _ in range(repeats)]) for name, step in steps.items()]


def start(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def seconds(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def result(name: str, times: list[float]) -> dict[str, object]:
    return {"name": name, "value": 1e3 * statistics.median(times), "unit": "ms"}


if __name__ == "__main__":
    main()
