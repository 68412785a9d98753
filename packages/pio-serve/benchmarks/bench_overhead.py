"""What the server adds to the engine: processor time per streamed token, and time to the first token.

    python benchmarks/bench_overhead.py [--json FILE] [--quick]

The server runs in a thread of this process; clients run in another one. Processor time is that of the thread that
serves, so neither the engine's nor the clients' is in it. Times to the first token are medians at concurrency 1, over
HTTP and from the engine in turns; the engine's includes rendering and tokenizing, which the server does too.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import statistics
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.core import LLM, SamplingParams
from inference_pio.serve import PioServer, ServeSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.serve._models.served import ServedModel

MODEL = "smollm2-135m-instruct"
MESSAGES = [{"role": "user", "content": "Tell a long story about a fox."}]
Result = dict[str, str | float]


def stream(port: int, max_tokens: int) -> tuple[float, int]:
    """One streamed answer: seconds to its first content, and how many chunks had content."""
    body = {"messages": MESSAGES, "max_tokens": max_tokens, "stream": True, "ignore_eos": True, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    first, chunks = 0.0, 0
    for line in reply:
        if line.startswith(b"data: {") and b'"content":"' in line and b'"content":""' not in line:
            first = first or time.perf_counter() - started
            chunks += 1
    connection.close()
    return first, chunks


def start() -> tuple[PioServer, threading.Thread]:
    """A server at a free port, its model there."""
    ready = threading.Event()
    server = PioServer(
        ServeSettings(port=0), MODEL, lambda: LLM(MODEL, max_num_seqs=16), on_ready=lambda *_: ready.set()
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    if not ready.wait(120):
        raise TimeoutError("the model is not there after 120 s")
    return server, thread


def in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], float]) -> float:
    """``call`` in the thread that serves."""
    found: Future[float] = Future()
    loop.call_soon_threadsafe(lambda: found.set_result(call()))
    return found.result()


async def engine_ttft(model: ServedModel) -> float:
    """Seconds to the first token without a server."""
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    started = time.perf_counter()
    request = model.llm.make_request(MESSAGES, params)
    async with await model.engine.submit(request) as events:
        async for _ in events:
            return time.perf_counter() - started
    raise RuntimeError("the engine gave no token")


def measure(*, quick: bool) -> list[Result]:
    """All figures."""
    server, thread = start()
    port = int(server.address.rpartition(":")[2])
    model = server.state.models.all()[0]
    loop = server.servers[0].get_loop()
    results: list[Result] = []
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as clients:
        list(clients.map(stream, [port] * 8, [4] * 8))  # warm
        for concurrency in (1, 8):
            tokens = 128 if quick else 1024
            before, wall = in_loop(loop, time.thread_time), time.perf_counter()
            chunks = sum(found for _, found in clients.map(stream, [port] * concurrency, [tokens] * concurrency))
            spent = in_loop(loop, time.thread_time) - before
            elapsed = time.perf_counter() - wall
            results += [
                {"name": f"CPU per token, {concurrency} streams", "value": spent / chunks * 1e6, "unit": "us"},
                {"name": f"tokens per second, {concurrency} streams", "value": chunks / elapsed, "unit": "1/s"},
            ]
        over_http, direct = [], []
        for _ in range(5 if quick else 40):
            over_http.append(clients.submit(stream, port, 2).result()[0])
            direct.append(asyncio.run_coroutine_threadsafe(engine_ttft(model), loop).result())
    server.drain()
    thread.join()
    for name, values in (("TTFT over HTTP", over_http), ("TTFT of the engine", direct)):
        results.append({"name": name, "value": statistics.median(values) * 1e3, "unit": "ms"})
    added = statistics.median(over_http) - statistics.median(direct)
    results.append({"name": "TTFT added by the server", "value": added * 1e3, "unit": "ms"})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="What the server adds to the engine.")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--quick", action="store_true", help="fewer tokens")
    arguments = parser.parse_args()
    results = measure(quick=arguments.quick)
    for result in results:
        print(f"{result['name']:<32} {result['value']:>10.2f} {result['unit']}")
    document = json.dumps(
        {
            "benchmark": "overhead",
            "package": "pio-serve",
            "results": results,
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()},
        }
    )
    print(document)
    if arguments.json is not None:
        arguments.json.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
