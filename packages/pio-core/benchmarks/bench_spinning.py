"""Decode speed by how long idle OpenMP threads spin, on a quiet and on a busy machine.

    python benchmarks/bench_spinning.py [--rounds 3] [--quick] [--json FILE]

Each measurement is a fresh process, since the setting is read when torch is loaded; settings take turns. The busy
machine is this one with one process that computes beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

SETTINGS = ("library's default", "1000", "10000")
CHILD = """
import sys
from inference_pio.core import LLM, SamplingParams
llm = LLM("smollm2-135m-instruct")
params = SamplingParams(temperature=0.0, max_tokens=33, ignore_eos=True)
llm.generate([[1, 2, 3]], params)
(output,) = llm.generate([[1, 2, 3]], params)
print(32 / output.metrics.decode_s)
"""


def decode_speed(setting: str) -> float:
    """Tokens per second of a fresh process."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    }
    if setting == SETTINGS[0]:
        environment["OMP_WAIT_POLICY"] = ""  # keeps the engine's hands off; the library takes empty for unset
    else:
        environment["GOMP_SPINCOUNT"] = setting
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    for busy in (False, True):
        speeds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            for _ in range(1 if arguments.quick else arguments.rounds):
                for setting in SETTINGS:
                    speeds[setting].append(decode_speed(setting))
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
        for setting, values in speeds.items():
            name = f"{'busy' if busy else 'quiet'}, spin count {setting}"
            row = {
                "value": round(statistics.median(values), 1),
                "min": round(min(values), 1),
                "max": round(max(values), 1),
            }
            results.append({"name": name, "unit": "tokens/s", **row})
            print(f"{name:<40} {row['value']:>7} tokens/s  ({row['min']} .. {row['max']})")
    machine = {"cpu": platform.machine(), "cores": os.cpu_count()}
    line = json.dumps({"benchmark": "spinning", "package": "pio-core", "results": results, "machine": machine})
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
