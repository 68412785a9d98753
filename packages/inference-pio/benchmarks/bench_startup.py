"""What a user waits for: help, version, settings, a model's description, and the first token from process start.

    python benchmarks/bench_startup.py [--json FILE] [--quick] [--model MODEL] [--threads N]

Medians of fresh processes, the commands taking turns, caches warm: wall-clock time, and processor time, which says more
on a busy machine. ``first token`` is the time from starting the process to the first byte on its standard output;
``import torch`` is there to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

QUESTION = "What is the capital of France?"
PIO = [sys.executable, "-m", "inference_pio.cli"]


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds from the start of the process to its first output and to its end, and its processor seconds."""
    start, before = time.perf_counter(), os.times()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    end, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return first, end, busy


def commands(model: list[str], threads: list[str]) -> dict[str, list[str]]:
    """What is measured, by name."""
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "pio --help": [*PIO, "--help"],
        "pio --version": [*PIO, "--version"],
        "pio config show": [*PIO, "config", "show"],
        "pio ls": [*PIO, "ls"],
        "pio show": [*PIO, "show", *model],
        "import torch": [sys.executable, "-c", "import torch, os; os._exit(0)"],
        "pio run": [*PIO, "run", QUESTION, "--max-tokens", "8", *(["-m", *model] if model else []), *threads],
    }


def measure(programs: dict[str, list[str]], repeats: int) -> list[dict[str, object]]:
    """Medians of first output and end, after one round to warm up."""
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, command in programs.items():
            measured = run(command)
            if turn > 0:
                times[name].append(measured)
    results: list[dict[str, object]] = []
    for name, runs in times.items():
        first, end, busy = (list(column) for column in zip(*runs, strict=True))
        if name == "pio run":
            results.append(result("pio run, first token", first))
        results.append({**result(name, end), "processor_s": statistics.median(busy)})
    return results


def result(name: str, seconds: list[float]) -> dict[str, object]:
    """One row."""
    return {"name": name, "value": statistics.median(seconds), "unit": "s", "best": min(seconds), "n": len(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--model", help="instead of the default model")
    parser.add_argument("--threads", help="as pio run --threads")
    options = parser.parse_args()
    threads = ["--threads", options.threads] if options.threads else []
    results = measure(commands([options.model] if options.model else [], threads), 2 if options.quick else 9)
    for row in results:
        busy = f", processor {row['processor_s']:.3f}" if "processor_s" in row else ""
        print(f"{row['name']:24} {row['value']:7.3f} s  (best {row['best']:.3f}{busy})")
    document = {
        "benchmark": "startup",
        "package": "inference-pio",
        "results": results,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "torch": version("torch"),
        },
    }
    line = json.dumps(document)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
