"""Measures the limits of this machine; a process of its own, since BLAS fixes its threads when it is loaded.

    python -m inference_pio.benchmarks._limits_probe THREADS[,THREADS...] [--quick]

Writes one JSON list of ``{"threads", "read_gb_s", "fp32_gflop_s", "int8_gop_s", "source"}`` to standard output.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LIMITS = ("read_gb_s", "fp32_gflop_s", "int8_gop_s")
MIB = 1 << 20
_READ_MIB = 512
_LEAST_MIB = 64
_GEMM_SIZE = 1024


class Probe(Protocol):
    """Measures some of ``LIMITS`` on ``threads`` threads; may spell ``_s`` out as ``_per_s``, and tell more."""

    def __call__(self, threads: int) -> Mapping[str, float]: ...


class NumPyProbe:
    """Sums of a large array for reading, float32 matrix products for arithmetic; both release the interpreter lock.

    Needs ``OPENBLAS_NUM_THREADS=1`` and its like in the environment from before the import of NumPy: the threads are
    ours, each with a product of its own.

    Args:
        mebibytes: Size of the array, which should be far larger than the caches.
        seconds: How long to repeat each measurement; the best repeat counts, since a limit is what is possible.
    """

    def __init__(self, *, mebibytes: int, seconds: float) -> None:
        self._array = np.ones(mebibytes * MIB // 8, dtype=np.int64)
        self._seconds = seconds

    def __call__(self, threads: int) -> dict[str, float]:
        """The two limits, on ``threads`` threads."""
        parts = np.array_split(self._array, threads)
        reading = best_seconds([part.sum for part in parts], self._seconds)
        products = [_product(seed) for seed in range(threads)]
        computing = best_seconds(products, self._seconds)
        return {
            "read_gb_s": self._array.nbytes / reading / 1e9,
            "fp32_gflop_s": threads * 2 * _GEMM_SIZE**3 / computing / 1e9,
        }


def best_seconds(work: Sequence[Callable[[], object]], seconds: float) -> float:
    """Shortest time in which all of ``work`` is done once, each in a thread of its own; of repeats over ``seconds``.

    Each task must take milliseconds, beside which handing it to its thread is nothing. The first repeat warms up and
    does not count; at least two do.
    """
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    with ThreadPoolExecutor(len(work)) as pool:
        while len(times) < 3 or time.perf_counter() < deadline:
            begin = time.perf_counter()
            futures = [pool.submit(task) for task in work]
            for future in futures:
                future.result()
            times.append(time.perf_counter() - begin)
    return min(times[1:])


def _product(seed: int) -> Callable[[], object]:
    generator = np.random.default_rng(seed)
    left, right = (generator.random((_GEMM_SIZE, _GEMM_SIZE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out)


def find_probes(*, quick: bool) -> dict[str, Probe]:
    """All probes there are, by name: NumPy's, and the native library's where that is installed and can be loaded."""
    import psutil

    room = psutil.virtual_memory().available // MIB // 4
    size = max(_LEAST_MIB, min(_READ_MIB // 4 if quick else _READ_MIB, room))
    probes: dict[str, Probe] = {"numpy": NumPyProbe(mebibytes=size, seconds=0.1 if quick else 1.0)}
    try:
        kernels = importlib.import_module("inference_pio.kernels")
    except ModuleNotFoundError as error:
        if error.name != "inference_pio.kernels":
            raise
        return probes
    native = getattr(kernels, "measure_limits", None)
    return probes if native is None else probes | {"kernels": native}


def measure(probes: Mapping[str, Probe], threads: int) -> dict[str, object]:
    """The highest value of each limit that a probe found, since a limit is what is possible, and who found one."""
    best: dict[str, float] = {}
    sources: dict[str, str] = {}
    for source, probe in probes.items():
        try:
            found = probe(threads)
        except PioError as error:
            sys.stderr.write(f"{source}: {error}\n")
            continue
        for key, value in found.items():
            name = key.replace("_per_s", "_s")
            if name in LIMITS and value > best.get(name, 0.0):
                best[name], sources[name] = value, source
    told = ", ".join(source for source in probes if source in sources.values())
    return {"threads": threads, **{name: best.get(name) for name in LIMITS}, "source": told}


def main(arguments: Sequence[str]) -> None:
    """Measure, and write the list."""
    probes = find_probes(quick="--quick" in arguments)
    rows = [measure(probes, int(count)) for count in arguments[0].split(",")]
    sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
