"""What the machine allows at best: bytes read per second, operations per second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.benchmarks._fields import Fields
from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Measured limits of a machine on a number of threads.

    Attributes:
        threads: Threads that they were measured with.
        read_gb_s: Bandwidth of reading memory far larger than the caches, in 10^9 bytes per second.
        fp32_gflop_s: 10^9 float32 operations per second in a matrix product (2 for a multiply-add), or None.
        int8_gop_s: The same for dot products of 8-bit integers by the best instructions that the kernels have, or
            None where their library does not load.
        source: What measured them: ``"numpy"``, ``"kernels"`` or both; the higher value counts.
    """

    threads: int
    read_gb_s: float
    fp32_gflop_s: float | None
    int8_gop_s: float | None
    source: str


def limits_to_json(limits: Limits) -> dict[str, object]:
    """The object that :func:`limits_from_json` reads."""
    return {
        "threads": limits.threads,
        "read_gb_s": limits.read_gb_s,
        "fp32_gflop_s": limits.fp32_gflop_s,
        "int8_gop_s": limits.int8_gop_s,
        "source": limits.source,
    }


def limits_from_json(fields: Fields) -> Limits:
    """The limits of a record.

    Raises:
        MalformedFileError: A key is missing, unknown or of the wrong type.
    """
    fields.keys(("threads", "read_gb_s", "fp32_gflop_s", "int8_gop_s", "source"))
    read = fields.optional_positive("read_gb_s")
    return Limits(
        threads=fields.integer("threads", minimum=1),
        read_gb_s=read if read is not None else fields.fail("is missing", "read_gb_s"),
        fp32_gflop_s=fields.optional_positive("fp32_gflop_s"),
        int8_gop_s=fields.optional_positive("int8_gop_s"),
        source=fields.text("source"),
    )


def measure_limits(thread_counts: Sequence[int], *, quick: bool = False) -> tuple[Limits, ...]:
    """Measure this machine; takes 2 seconds per number of threads, or some tenths if ``quick``.

    Args:
        thread_counts: Numbers of threads to measure with, each at least 1.
        quick: Rough figures, to see that it works.

    Raises:
        ValueError: A number of threads is below 1.
        PioError: The measuring process failed.
    """
    if not thread_counts or min(thread_counts) < 1:
        raise ValueError(f"thread counts must be at least 1, not {list(thread_counts)}")
    counts = sorted(set(thread_counts))
    command = [sys.executable, "-m", "inference_pio.benchmarks._limits_probe", ",".join(map(str, counts))]
    environment = os.environ | dict.fromkeys(_BLAS_THREADS, "1")
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise PioError(f"measuring the machine's limits failed with exit code {done.returncode}: {last}")
    source = Path("limits probe")
    rows = json.loads(done.stdout)
    return tuple(limits_from_json(Fields(source, row, f"limits[{index}]")) for index, row in enumerate(rows))


def limits_for(limits: Sequence[Limits], threads: int | None) -> Limits | None:
    """Those of ``threads`` threads, or of the most threads where it is None; None if they were not measured."""
    if threads is None:
        return max(limits, key=lambda each: each.threads, default=None)
    return next((each for each in limits if each.threads == threads), None)
