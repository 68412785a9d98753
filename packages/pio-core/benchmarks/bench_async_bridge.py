"""What ``AsyncEngine`` adds to the engine per streamed token: processor time and memory, with a model that is free.

Run it as ``python benchmarks/bench_async_bridge.py [--json FILE] [--quick]``. Both sides do the same requests in one
process, in turns; the bridge's cost is the difference in processor time over all threads. A reader that does nothing
but count is the least that any server would do. With one stream, every token wakes a sleeping event loop, which is most
of the cost; ``wake-up`` measures that alone, without engine and streams.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.core import AsyncEngine, Engine, SamplingParams
from inference_pio.core._host_sampler import HostSampler
from inference_pio.interfaces import CacheGroup, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from inference_pio.interfaces import StepBatch

VOCAB = 32
STREAMS = (1, 16, 64)


class FreeExecutor:
    """The same logits at every position."""

    name = "free"
    page_size = 16
    cache_groups = (CacheGroup(kind="full", num_pages=65_536),)

    def __init__(self) -> None:
        self.sampler = HostSampler()
        self._logits = np.arange(VOCAB, dtype=np.float32)

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        return np.tile(self._logits, (batch.logit_rows.size, 1))

    def close(self) -> None:
        pass


def make_engine() -> Engine:
    return Engine(
        FreeExecutor(),  # type: ignore[arg-type]  # no page is ever moved
        None,
        vocab_size=VOCAB,
        eos_token_ids=(),
        max_model_len=8192,
        max_num_seqs=max(STREAMS),
        prefix_caching=False,
    )


def requests(streams: int, tokens: int) -> list[Request]:
    params = SamplingParams(temperature=0, max_tokens=tokens)
    return [Request(request_id=str(index), prompt_token_ids=(1,), params=params) for index in range(streams)]


def alone(streams: int, tokens: int) -> float:
    """Processor seconds per token of the engine, stepped by hand."""
    engine = make_engine()
    for request in requests(streams, tokens):
        engine.add(request)
    start = time.process_time()
    events = 0
    while engine.has_work:
        events += len(engine.step())
    spent = time.process_time() - start
    assert events == streams * tokens
    return spent / events


async def bridged(streams: int, tokens: int) -> float:
    """The same through ``AsyncEngine``, one coroutine reading each stream."""
    engine = AsyncEngine(make_engine())

    async def read(request: Request) -> int:
        count = 0
        async with await engine.submit(request) as stream:
            async for _ in stream:
                count += 1
        return count

    start = time.process_time()
    counts = await asyncio.gather(*(read(request) for request in requests(streams, tokens)))
    spent = time.process_time() - start
    await engine.close()
    assert counts == [tokens] * streams
    return spent / sum(counts)


async def wake_up(count: int) -> float:
    """Processor seconds to have another thread wake the event loop for nothing, between waits of a model's length."""
    loop = asyncio.get_running_loop()
    woken = 0

    def note() -> None:
        nonlocal woken
        woken += 1

    def wake(function: Callable[[], object]) -> float:
        start = time.process_time()
        for _ in range(count):
            time.sleep(0.0005)
            function()
        return time.process_time() - start

    idle = await asyncio.to_thread(wake, lambda: None)
    busy = await asyncio.to_thread(wake, lambda: loop.call_soon_threadsafe(note))
    assert woken >= count - 1
    return (busy - idle) / count


async def unread_bytes(tokens: int) -> float:
    """Memory per token of a stream that nobody reads, besides what the engine keeps of the text anyway."""
    engine = AsyncEngine(make_engine())
    gc.collect()
    tracemalloc.start()
    stream = await engine.submit(requests(1, tokens)[0])
    while stream.output is None:
        await asyncio.sleep(0.01)
    gc.collect()
    full = tracemalloc.get_traced_memory()[0]
    async for _ in stream:
        pass
    gc.collect()
    held = full - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    await engine.close()
    return held / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds, total = (3, 3_840) if options.quick else (9, 7_680)
    results = []

    def report(name: str, value: float, unit: str) -> None:
        results.append({"name": name, "value": round(value, 3), "unit": unit})
        print(f"{name:<52} {value:10.2f} {unit}")

    for streams in STREAMS:
        tokens = total // streams
        pairs = [(alone(streams, tokens), asyncio.run(bridged(streams, tokens))) for _ in range(rounds + 1)][1:]
        report(f"{streams} streams: engine alone, per token", statistics.median(one for one, _ in pairs) * 1e6, "us")
        report(
            f"{streams} streams: through AsyncEngine, per token", statistics.median(two for _, two in pairs) * 1e6, "us"
        )
        report(
            f"{streams} streams: the bridge, per token", statistics.median(two - one for one, two in pairs) * 1e6, "us"
        )
    report(
        "a wake-up of the event loop", statistics.median(asyncio.run(wake_up(1_000)) for _ in range(rounds)) * 1e6, "us"
    )
    report("a token that waits to be read", asyncio.run(unread_bytes(2_000)), "bytes")
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    line = json.dumps({"benchmark": "async_bridge", "package": "pio-core", "results": results, "machine": machine})
    if options.json is not None:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
