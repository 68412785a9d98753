"""What a router costs per part of a stream, and what knowing prefixes saves.

    python benchmarks/bench_router.py [--json FILE] [--quick]

Three questions. What the client of the replicas costs per part of a reply, beside a general one (httpx2), both reading
the same stream from another process over a unix socket, in turns. What the whole router costs per streamed token:
processor time of its thread, the replicas being other processes. What share of prompts' tokens replicas find in their
caches, chosen by prefix or in turns, for conversations that take turns themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from inference_pio.serve import ServeSettings
from inference_pio.serve._command import serve
from inference_pio.serve._router.balance import Balance
from inference_pio.serve._router.command import replica_orders
from inference_pio.serve._router.server import RouterServer
from inference_pio.serve._router.upstream import ask
from inference_pio.serve._scrape import MetricsSource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

Result = dict[str, str | float]
MODEL = "smollm2-135m-instruct"
SENDER = """
import asyncio, sys
PART = b'data: {"id":"chatcmpl-0","choices":[{"index":0,"delta":{"content":" word"}}]}' + b"x" * 100 + b"\\n\\n"
async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n")
    for _ in range(int(sys.argv[2])):
        writer.write(b"%x\\r\\n%b\\r\\n" % (len(PART), PART))
        await writer.drain()
        await asyncio.sleep(0.0005)
    writer.write(b"0\\r\\n\\r\\n")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1])
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def ours(path: Path) -> int:
    async with ask(path, "GET", b"/", []) as reply:
        await reply.head()
        return sum([1 async for _ in reply.parts()])


async def general(path: Path) -> int:
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    async with httpx2.AsyncClient(transport=transport) as client, client.stream("GET", "http://replica/") as reply:
        return sum([1 async for _ in reply.aiter_raw()])


def clients(parts: int, rounds: int) -> list[Result]:
    """Processor time of this process per part, read by each client in turns."""
    kinds: dict[str, Callable[[Path], Awaitable[int]]] = {"ours": ours, "httpx2": general}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s")
        with subprocess.Popen([sys.executable, "-c", SENDER, str(path), str(parts)], stdout=subprocess.PIPE) as sender:
            assert sender.stdout is not None
            sender.stdout.readline()
            for _ in range(rounds):
                for name, read in kinds.items():
                    before = time.process_time()
                    found = asyncio.run(read(path))
                    spent[name].append((time.process_time() - before) / found)
            sender.kill()
    return [
        {"name": f"client of replicas, {name}", "value": statistics.median(values) * 1e6, "unit": "us/part"}
        for name, values in spent.items()
    ]


def start() -> tuple[RouterServer, threading.Thread, asyncio.AbstractEventLoop]:
    """A router before two replicas of one thread each, all there, with its thread and its event loop."""
    arguments = ["--max-model-len", "2048", "--max-num-seqs", "8", "--replicas", "2"]
    options = dict(serve.make_context("serve", arguments).params)
    del options["models"]
    ready: Future[asyncio.AbstractEventLoop] = Future()
    server = RouterServer(
        ServeSettings(port=0),
        [None, None],
        replica_orders((MODEL,), options, 1),
        on_ready=lambda *_: ready.set_result(asyncio.get_running_loop()),
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    return server, thread, ready.result(timeout=120)


def chat(port: int, text: str, tokens: int, *, stream: bool) -> int:
    """Parts of one answer."""
    body = {
        "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": stream, "ignore_eos": True,
        "temperature": 0,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    parts = sum(line.startswith(b"data: {") for line in reply)
    connection.close()
    return parts


def whole(server: RouterServer, loop: asyncio.AbstractEventLoop, tokens: int) -> list[Result]:
    """Processor time of the router's thread per streamed token."""
    port = int(server.address.rpartition(":")[2])

    def spent() -> float:
        found: Future[float] = Future()
        loop.call_soon_threadsafe(lambda: found.set_result(time.thread_time()))
        return found.result()

    results: list[Result] = []
    for streams in (1, 8):
        with ThreadPoolExecutor(streams) as pool:
            before = spent()
            parts = sum(pool.map(lambda _: chat(port, "Count.", tokens, stream=True), range(streams)))
            value = (spent() - before) / parts
        results.append({"name": f"router, {streams} streams", "value": value * 1e6, "unit": "us/token"})
    return results


class Turns(Balance):
    """Replicas in turns, whatever they have read."""

    def choose(self, ready: Collection[int], blocks: Sequence[int]) -> int:  # noqa: ARG002 - whatever they are
        return list(ready)[sum(load.requests for load in self.loads) % len(ready)]


def prefixes(server: RouterServer, turns: int) -> list[Result]:
    """Share of prompts' tokens found in the caches, of seven conversations that take turns."""
    port, source = int(server.address.rpartition(":")[2]), MetricsSource(server.address, None)
    results: list[Result] = []
    for name, balance in (("by prefix", Balance(2)), ("in turns", Turns(2))):
        server.router.balance = balance
        before = source.read()
        for turn in range(turns):
            for topic in range(7):
                text = f"{name} {topic}. " + "The fox read a book about trees. " * 30 + "And then? " * turn
                chat(port, text, 1, stream=False)
        now = source.read()
        hits, queries = (
            now.total(f"pio:prefix_cache_{kind}_total") - before.total(f"pio:prefix_cache_{kind}_total")
            for kind in ("hits", "queries")
        )
        results.append({"name": f"prompt tokens found, {name}", "value": 100 * hits / queries, "unit": "%"})
    return results


def measure(*, quick: bool) -> list[Result]:
    """All figures."""
    results = clients(500 if quick else 2000, 3 if quick else 9)
    server, thread, loop = start()
    try:
        chat(int(server.address.rpartition(":")[2]), "Hello.", 8, stream=True)  # warm
        results += whole(server, loop, 64 if quick else 512)
        results += prefixes(server, 3 if quick else 6)
    finally:
        server.drain()
        thread.join()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="What a router costs, and what knowing prefixes saves.")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--quick", action="store_true", help="fewer tokens")
    arguments = parser.parse_args()
    results = measure(quick=arguments.quick)
    for result in results:
        print(f"{result['name']:<32} {result['value']:>10.2f} {result['unit']}")
    document = json.dumps(
        {
            "benchmark": "router",
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
