"""What the harness itself costs: reading records, a bootstrap interval, a report.

python benchmarks/bench_harness.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.benchmarks import (
    Limits,
    Measurement,
    Record,
    describe_machine,
    ratio_of_medians,
    read_records,
    write_record,
)
from inference_pio.benchmarks._machine import machine_to_json
from inference_pio.benchmarks._report import render_report

if TYPE_CHECKING:
    from collections.abc import Callable


def median_ms(call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each repeat, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def make_records(count: int) -> list[Record]:
    """Records of one benchmark over ``count`` days, 40 measurements of 5 rounds each."""
    generator, machine = np.random.default_rng(0), describe_machine()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Record(
            benchmark="harness",
            package="pio-benchmarks",
            version="0.1.0",
            settings={"rounds": 5},
            measurements=tuple(
                Measurement(
                    f"decode, case {case}",
                    "tokens/s",
                    tuple(generator.lognormal(5, 0.05, 5).tolist()),
                    "higher",
                    1e8,
                    3e8,
                    {"phase": "decode", "batch": 1 + case, "context": 0, "threads": 1},
                )
                for case in range(40)
            ),
            machine=machine,
            limits=(Limits(1, 26.0, 90.0, 400.0, "numpy"),),
            date=begin + timedelta(days=day),
        )
        for day in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    options = parser.parse_args()
    repeats = 3 if options.quick else 15
    records = make_records(10 if options.quick else 100)
    rounds = records[0].measurements[0].values
    with tempfile.TemporaryDirectory() as folder:
        for index, record in enumerate(records):
            write_record(record, Path(folder) / f"{index:04}.json")
        times = {
            f"read {len(records)} records of 40 measurements": median_ms(lambda: read_records([Path(folder)]), repeats),
            "ratio_of_medians, 5 paired rounds": median_ms(lambda: ratio_of_medians(rounds, rounds), repeats),
            f"report of {len(records)} records": median_ms(lambda: render_report(records), min(repeats, 5)),
            "describe_machine": median_ms(describe_machine, repeats),
        }
    for name, values in times.items():
        print(f"{name:40} {statistics.median(values):9.2f} ms")
    results = [
        {"name": name, "value": statistics.median(values), "values": values, "unit": "ms"}
        for name, values in times.items()
    ]
    machine = machine_to_json(describe_machine())
    document = {"benchmark": "harness", "package": "pio-benchmarks", "results": results, "machine": machine}
    line = json.dumps(document)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
