"""How long a fresh process takes to import the contracts, beside an empty process and the standard library they use.

python benchmarks/bench_import.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "empty process": "pass",
    "standard library it uses": "import dataclasses, enum, math, numbers, pathlib, re, tomllib, typing",
    "inference_pio.interfaces": "import inference_pio.interfaces",
}


def seconds(code: str) -> float:
    """Wall time of a Python process that runs ``code``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
    return time.perf_counter() - start


def measure(repeats: int) -> dict[str, list[float]]:
    """Times per case, in seconds, the cases taking turns."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for code in CASES.values():
        seconds(code)  # writes byte code, fills the page cache
    for _ in range(repeats):
        for name, code in CASES.items():
            times[name].append(seconds(code))
    return times


def main() -> None:
    """Print a table, and one JSON line last."""
    parser = argparse.ArgumentParser(description="Time to import the contracts.")
    parser.add_argument("--json", type=Path, help="also write the result there")
    parser.add_argument("--quick", action="store_true", help="5 repeats instead of 30")
    arguments = parser.parse_args()
    repeats = 5 if arguments.quick else 30
    times = measure(repeats)
    results = [
        {
            "name": name,
            "value": round(statistics.median(taken) * 1e3, 2),
            "unit": "ms",
            "min": round(min(taken) * 1e3, 2),
        }
        for name, taken in times.items()
    ]
    for result in results:
        print(f"{result['name']:<28}{result['value']:>8} ms (least {result['min']})")
    machine = {"cpu": platform.machine(), "system": platform.system(), "python": platform.python_version()}
    line = json.dumps(
        {"benchmark": "import", "package": "pio-interfaces", "results": results, "repeats": repeats, "machine": machine}
    )
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
