"""Records made by hand, a checkout of fake distributions, and a way to run ``pio bench``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from inference_pio.benchmarks import Limits, Machine, Measurement, Record
from inference_pio.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        """Standard output, which is one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def pio_bench(capsys, monkeypatch) -> Callable[..., Done]:
    """Runs ``pio bench`` with some arguments in this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("PIO_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main(["bench", *map(str, arguments)])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def machine() -> Machine:
    """A machine that is not this one."""
    return Machine(
        cpu="Example CPU 9000",
        architecture="x86_64",
        instruction_sets=("avx2", "fma"),
        physical_cores=4,
        logical_cores=8,
        usable_cpus=8,
        cpu_limit=None,
        memory_bytes=16 << 30,
        system="Linux 6.1",
        python="CPython 3.11.7",
        distributions={"pio-demo": "0.1.0", "numpy": "2.4.6"},
        gpus=(),
    )


@pytest.fixture
def make_record(machine) -> Callable[..., Record]:
    """A record with two measurements; keywords replace fields."""

    def make(**fields: object) -> Record:
        record = Record(
            benchmark="gen",
            package="pio-demo",
            version="0.1.0",
            settings={"model": "tiny", "rounds": 5, "quick": False, "note": None},
            measurements=(
                Measurement(
                    "decode, batch 1",
                    "tokens/s",
                    (100.0, 102.0, 98.0, 101.0, 99.0),
                    "higher",
                    bytes_per_unit=1e8,
                    ops_per_unit=2e8,
                    details={"phase": "decode", "batch": 1, "context": 0, "threads": 2},
                ),
                Measurement("load", "s", (0.5, 0.6, 0.55), "lower"),
            ),
            machine=machine,
            limits=(Limits(1, 13.0, 90.0, 400.0, "kernels"), Limits(2, 20.0, 150.0, None, "numpy")),
            date=datetime(2026, 11, 1, 12, 0, tzinfo=UTC),
            warnings=("other programs use 0.4 of 8 CPUs",),
        )
        return dataclasses.replace(record, **fields)

    return make


GOOD = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--json", type=pathlib.Path)
parser.add_argument("--quick", action="store_true")
options = parser.parse_args()
results = [{"name": "speed", "value": 5.0 if options.quick else 7.0, "unit": "tokens/s", "flavour": "plain"}]
machine = {"threads": 3}
print("a table for people")
options.json.write_text(json.dumps({"benchmark": "NAME", "package": "x", "results": results, "machine": machine}))
"""


@pytest.fixture
def checkout(tmp_path) -> Callable[[dict[str, str]], Path]:
    """Makes a workspace of scripts: ``{"pio-a/fast": source}``; ``GOOD`` in a source stands for a script that works."""

    def make(scripts: dict[str, str]) -> Path:
        root = tmp_path / "checkout"
        (root / "packages").mkdir(parents=True)
        (root / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*"]\n')
        for name, source in scripts.items():
            package, _, benchmark = name.partition("/")
            folder = root / "packages" / package
            (folder / "benchmarks").mkdir(parents=True, exist_ok=True)
            (folder / "pyproject.toml").write_text(f'[project]\nname = "{package}"\nversion = "1.{len(package)}"\n')
            code = source.replace("GOOD", GOOD.replace("NAME", benchmark))
            (folder / "benchmarks" / f"bench_{benchmark}.py").write_text(code)
        return root

    return make


@pytest.fixture
def python() -> str:
    """The interpreter that runs the tests."""
    return sys.executable
