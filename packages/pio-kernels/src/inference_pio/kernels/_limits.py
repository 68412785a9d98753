"""What the machine can do at most, measured: the yardstick for what kernels reach."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.kernels._library import choose_instruction_set, default_threads, load_library
from inference_pio.kernels._memory import allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inference_pio.kernels._library import InstructionSet

_SMALLEST_PART = 8 * 2**20
_PARTS_PER_THREAD = 4
_PROBE_ROWS, _LANES, _INPUTS = 8, 16, 32
_OPS_PER_ROUND = 2 * _PROBE_ROWS * _LANES * _INPUTS
_PROBE_SECONDS = 0.02


def measure_limits(
    threads: int | None = None, *, nbytes: int = 2**28, repeats: int = 5, isa: str | None = None
) -> dict[str, float]:
    """Measure how fast ``threads`` threads together read memory and multiply 8-bit integers.

    The products are those that the kernels of quantised weights consist of, by the same instructions, with weights and
    sums in registers: no kernel of this instruction set is faster.

    Args:
        threads: How many; None takes as many as there are cores to use.
        nbytes: Memory to read, far more than the caches hold; a multiple of 64.
        repeats: The best of so many counts: what disturbs a measurement only ever slows it down.
        isa: Instruction set by name; None takes the best one, whatever ``PIO_KERNELS`` says: the machine is measured.

    Returns:
        ``read_gb_per_s``, in 10^9 bytes per second; ``int8_gop_per_s``, in 10^9 operations per second, a multiply-add
        being 2; and ``threads``.

    Raises:
        ValueError: ``nbytes`` is not positive, or no multiple of 64.
        DoesNotFitError: There is no memory of that size.
        ConfigError: There is no such instruction set.
        UnsupportedError: This processor cannot run it, or this build lacks it.
    """
    if nbytes < 64 or nbytes % 64 != 0:
        raise ValueError(f"nbytes must be a positive multiple of 64, not {nbytes}")
    count = default_threads() if threads is None else threads
    chosen = choose_instruction_set(isa, {})
    with ThreadPoolExecutor(count) as pool:
        reading = _read_seconds(pool, count, nbytes, repeats)
        computing = _round_seconds(pool, chosen, count, repeats)
    return {
        "read_gb_per_s": nbytes / reading / 1e9,
        "int8_gop_per_s": _OPS_PER_ROUND * count / computing / 1e9,
        "threads": float(count),
    }


def _read_seconds(pool: ThreadPoolExecutor, threads: int, nbytes: int, repeats: int) -> float:
    """Seconds in which the threads of ``pool`` read ``nbytes`` bytes."""
    library = load_library()
    memory = allocate(nbytes, "a measurement of memory")
    memory.fill(1)
    address = memory.ctypes.data
    part = max(_SMALLEST_PART, nbytes // (_PARTS_PER_THREAD * threads) // 64 * 64)
    starts = range(0, nbytes, part)
    return _best(
        pool, lambda start: library.pio_probe_read(address + start, min(part, nbytes - start)), starts, repeats
    )


def _round_seconds(pool: ThreadPoolExecutor, isa: InstructionSet, threads: int, repeats: int) -> float:
    """Seconds of one round of the probe of dot products, which ``threads`` threads run at once."""
    library = load_library()
    weights = np.arange(4 * _LANES, dtype=np.uint8) % 16
    inputs = (37 * np.arange(_PROBE_ROWS * _INPUTS) % 255 - 127).astype(np.int8)
    sums = np.zeros((threads, _PROBE_ROWS, _LANES), dtype=np.int32)

    def multiply(rounds: int, thread: int) -> None:
        place = sums[thread].ctypes.data
        status = library.pio_probe_dots(isa.index, weights.ctypes.data, inputs.ctypes.data, rounds, place)
        assert status == 0, "a chosen instruction set is usable"

    rounds, seconds = 1, 0.0
    while seconds < _PROBE_SECONDS:  # beside which starting the threads is nothing
        rounds *= 4
        begin = time.perf_counter()
        multiply(rounds, 0)
        seconds = time.perf_counter() - begin
    return _best(pool, lambda thread: multiply(rounds, thread), range(threads), repeats) / rounds


def _best(pool: ThreadPoolExecutor, task: Callable[[int], object], items: Iterable[int], repeats: int) -> float:
    """Shortest seconds in which ``pool`` does ``task`` with each of ``items``."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        list(pool.map(task, items))
        best = min(best, time.perf_counter() - begin)
    return best
