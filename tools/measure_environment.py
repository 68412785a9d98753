"""Measure the environment that runs this file: its size, with and without torch, and what importing a package costs.

Runs inside the environment under test, so it needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from check_environment import loaded_by
from environment_size import brought_only_by, canonical, sizes

REPETITIONS = 3


def main() -> None:
    """Write one JSON object."""
    parser = argparse.ArgumentParser(description="Measure an environment.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write")
    parser.add_argument("--sizes-only", action="store_true", help="leave out what importing the package costs")
    parser.add_argument("leaf", help="the package to import")
    parser.add_argument("distribution", help="the distribution that brings it")
    arguments = parser.parse_args()
    found = sizes()
    torch = brought_only_by("torch", [arguments.distribution])
    measured: dict[str, float] = {
        "bytes": sum(found.values()),
        "bytes_without_torch": sum(size for name, size in found.items() if name not in torch),
        "own_bytes": found[canonical(arguments.distribution)],
    }
    if not arguments.sizes_only:
        measured["modules"] = len(loaded_by(arguments.leaf))
        measured["seconds"] = round(import_seconds(arguments.leaf), 3)
    arguments.out.write_text(json.dumps(measured), encoding="utf-8")


def import_seconds(leaf: str) -> float:
    """Median processor time of a process that imports ``leaf``, less that of one that imports nothing, in turns.

    Processor time, because what else the machine does changes it little.
    """
    with_it, without = [], []
    for _ in range(REPETITIONS):
        with_it.append(_seconds(f"import {leaf}"))
        without.append(_seconds("pass"))
    return max(0.0, statistics.median(with_it) - statistics.median(without))


def _seconds(code: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
