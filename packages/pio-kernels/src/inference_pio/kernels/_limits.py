"""What the machine can do at most, measured: the yardstick for what kernels reach."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from inference_pio.kernels._library import default_threads, load_library
from inference_pio.kernels._memory import allocate

_CHUNK = 8 * 2**20


def measure_limits(threads: int | None = None, *, nbytes: int = 2**28, repeats: int = 5) -> dict[str, float]:
    """Measure the speed at which ``threads`` threads together read memory.

    Args:
        threads: How many; None takes as many as there are cores to use.
        nbytes: Memory to read, far more than the caches hold.
        repeats: The best of so many counts: what disturbs a measurement only ever slows it down.

    Returns:
        ``read_gb_per_s``, in 10^9 bytes per second, and ``threads``.

    Raises:
        DoesNotFitError: There is no memory of that size.
    """
    count = default_threads() if threads is None else threads
    library = load_library()
    memory = allocate(nbytes, "a measurement of memory")
    memory.fill(1)
    starts = range(0, nbytes, _CHUNK)
    address = memory.ctypes.data
    best = float("inf")
    with ThreadPoolExecutor(count) as pool:
        for _ in range(repeats):
            begin = time.perf_counter()
            list(pool.map(lambda start: library.pio_checksum(address + start, min(_CHUNK, nbytes - start)), starts))
            best = min(best, time.perf_counter() - begin)
    return {"read_gb_per_s": nbytes / best / 1e9, "threads": float(count)}
