"""What the server adds to the engine: processor time per streamed token, and time to the first token.

    python benchmarks/bench_overhead.py [--json FILE] [--quick]

The server runs in a thread of this process; clients run in others. Processor time is that of the thread that serves, so
neither the engine's nor the clients' is in it. Part of it is no server's: whoever passes the engine's tokens on from an
event loop is woken for each, and sends it. That part is measured in turns, in the same loop, by sending as many tokens
of as many answers over bare sockets; what the server adds is the rest. Times to the first token are at concurrency 1,
over HTTP and from the engine in turns; the engine's includes rendering and tokenizing, which the server does too.
Figures are medians, and between what they lie.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import socket
import statistics
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from inference_pio.core import LLM, SamplingParams
from inference_pio.serve import PioServer, ServeSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from inference_pio.serve._models.served import ServedModel

MODEL = "smollm2-135m-instruct"
MESSAGES = [{"role": "user", "content": "Tell a long story about a fox."}]
TOKENS = 256
CHUNK = b"x" * 250


class Result(TypedDict):
    """One figure: the median of what was measured, and between what it lay."""

    name: str
    value: float
    low: float
    high: float
    unit: str


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


def start() -> tuple[PioServer, threading.Thread, asyncio.AbstractEventLoop]:
    """A server at a free port, its model there, with its thread and its event loop."""
    ready: Future[asyncio.AbstractEventLoop] = Future()
    server = PioServer(
        ServeSettings(port=0),
        MODEL,
        lambda: LLM(MODEL, max_num_seqs=16),
        on_ready=lambda *_: ready.set_result(asyncio.get_running_loop()),
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    return server, thread, ready.result(timeout=120)


def in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], float]) -> float:
    """``call`` in the thread that serves."""
    found: Future[float] = Future()
    loop.call_soon_threadsafe(lambda: found.set_result(call()))
    return found.result()


async def read_directly(model: ServedModel, max_tokens: int) -> AsyncIterator[float]:
    """Of one answer without a server, when each token came, in seconds since the request was made."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    started = time.perf_counter()
    request = model.llm.make_request(MESSAGES, params)
    async with await model.engine.submit(request) as events:
        async for _ in events:
            yield time.perf_counter() - started


async def engine_ttft(model: ServedModel) -> float:
    """Seconds to the first token without a server."""
    return min([came async for came in read_directly(model, 2)])


def drain(port: int) -> int:
    """Read what is sent to a socket until its end; how many bytes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        return sum(iter(lambda: len(connection.recv(65536)), 0))


async def send_bare(model: ServedModel, sockets: list[socket.socket]) -> int:
    """Read an answer for each socket without a server, and send as many bytes for each token as a chunk has."""

    async def one(connection: socket.socket) -> int:
        return sum([connection.send(CHUNK) async for _ in read_directly(model, TOKENS)]) // len(CHUNK)

    return sum(await asyncio.gather(*map(one, sockets)))


def bare_us(
    model: ServedModel, loop: asyncio.AbstractEventLoop, clients: ProcessPoolExecutor, concurrency: int
) -> float:
    """Processor time of the loop's thread per token that is read and sent without a server, in microseconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        drained = [clients.submit(drain, port) for _ in range(concurrency)]
        sockets = [listener.accept()[0] for _ in range(concurrency)]
    for connection in sockets:
        connection.settimeout(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    before = in_loop(loop, time.thread_time)
    tokens = asyncio.run_coroutine_threadsafe(send_bare(model, sockets), loop).result()
    spent = in_loop(loop, time.thread_time) - before
    for connection in sockets:
        connection.close()
    if sum(each.result() for each in drained) != tokens * len(CHUNK):
        raise RuntimeError("not all that was sent has come")
    return spent / tokens * 1e6


def summary(name: str, values: list[float], unit: str) -> Result:
    """The median of ``values``, and between what they lie."""
    return {"name": name, "value": statistics.median(values), "low": min(values), "high": max(values), "unit": unit}


def measure(*, quick: bool) -> list[Result]:
    """All figures."""
    server, thread, loop = start()
    port = int(server.address.rpartition(":")[2])
    model = server.state.models.all()[0]
    results: list[Result] = []
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as clients:
        list(clients.map(stream, [port] * 8, [4] * 8))  # warm
        for concurrency in (1, 8):
            served, bare, tokens_per_s = [], [], []
            for _ in range(1 if quick else 7):
                started, before = time.perf_counter(), in_loop(loop, time.thread_time)
                chunks = sum(found for _, found in clients.map(stream, [port] * concurrency, [TOKENS] * concurrency))
                served.append((in_loop(loop, time.thread_time) - before) / chunks * 1e6)
                tokens_per_s.append(chunks / (time.perf_counter() - started))
                bare.append(bare_us(model, loop, clients, concurrency))
            added = [ours - least for ours, least in zip(served, bare, strict=True)]
            results += [
                summary(f"CPU per token, {concurrency} streams", served, "us"),
                summary(f"- to be woken and send, {concurrency} streams", bare, "us"),
                summary(f"- of the server, {concurrency} streams", added, "us"),
                summary(f"tokens per second, {concurrency} streams", tokens_per_s, "1/s"),
            ]
        over_http, direct = [], []
        for _ in range(5 if quick else 40):
            over_http.append(clients.submit(stream, port, 2).result()[0])
            direct.append(asyncio.run_coroutine_threadsafe(engine_ttft(model), loop).result())
    server.drain()
    thread.join()
    both = zip(over_http, direct, strict=True)
    results += [
        summary("TTFT over HTTP", [1e3 * each for each in over_http], "ms"),
        summary("TTFT of the engine", [1e3 * each for each in direct], "ms"),
        summary("TTFT added by the server", [1e3 * (ours - engine) for ours, engine in both], "ms"),
    ]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="What the server adds to the engine.")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--quick", action="store_true", help="fewer tokens")
    arguments = parser.parse_args()
    results = measure(quick=arguments.quick)
    for result in results:
        spread = f"({result['low']:.2f} to {result['high']:.2f})"
        print(f"{result['name']:<36} {result['value']:>10.2f} {spread} {result['unit']}")
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
