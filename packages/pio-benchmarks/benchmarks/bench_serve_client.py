"""Processor time of the load generator per chunk, and of HTTP libraries in its place where they are installed.

python benchmarks/bench_serve_client.py [--json FILE] [--quick]

A server in a process of its own streams chunks of a completion, four streams at once, slowly enough that each comes
alone. All clients cut the same events and decode the same JSON; what differs is HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.benchmarks import describe_machine
from inference_pio.benchmarks._machine import machine_to_json
from inference_pio.benchmarks._serve_client import Asking, OpenAIClient, _Stream
from inference_pio.benchmarks._serve_http import HttpClient, parse_base_url
from inference_pio.benchmarks._serve_http_reply import ReplyHead
from inference_pio.benchmarks._serve_prompts import Prompt
from inference_pio.benchmarks._serve_timeline import Timeline

try:
    import httpx
except ImportError:
    httpx = None
try:
    import aiohttp
except ImportError:
    aiohttp = None

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STREAMS = 4
OK = ReplyHead(200, "OK", {}, keeps_alive=True)

SERVER = """
import asyncio, json, sys

def event(value):
    data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\\n\\n"
    return b"%x\\r\\n%b\\r\\n" % (len(data), data)

async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\\r")[0])
            count = json.loads(await reader.readexactly(length))["max_tokens"]
            writer.write(b"HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n")
            for number in range(count):
                choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
                writer.write(event({"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1700000000,
                                    "model": "m", "choices": [choice], "usage": None}))
                await asyncio.sleep(0.0003)
            writer.write(event(b"[DONE]") + b"0\\r\\n\\r\\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


async def ours(url: str, count: int) -> int:
    http = HttpClient(parse_base_url(url), {}, timeout_s=600)
    client = OpenAIClient(http, Asking("completions", "m"))
    timelines = [Timeline() for _ in range(STREAMS)]
    await asyncio.gather(*(client.send(Prompt("x", count), timeline) for timeline in timelines))
    await client.close()
    return sum(len(timeline.chunks) for timeline in timelines)


async def by_httpx(url: str, count: int) -> int:
    async def one(client: httpx.AsyncClient) -> int:
        timeline = Timeline()
        stream = _Stream(timeline)
        async with client.stream("POST", f"{url}/v1/completions", json={"max_tokens": count}) as reply:
            async for data in reply.aiter_bytes():
                stream.take(OK, data, time.perf_counter())
        return len(timeline.chunks)

    async with httpx.AsyncClient() as client:
        return sum(await asyncio.gather(*(one(client) for _ in range(STREAMS))))


async def by_aiohttp(url: str, count: int) -> int:
    async def one(client: aiohttp.ClientSession) -> int:
        timeline = Timeline()
        stream = _Stream(timeline)
        async with client.post(f"{url}/v1/completions", json={"max_tokens": count}) as reply:
            async for data in reply.content.iter_any():
                stream.take(OK, data, time.perf_counter())
        return len(timeline.chunks)

    async with aiohttp.ClientSession() as client:
        return sum(await asyncio.gather(*(one(client) for _ in range(STREAMS))))


def clients() -> dict[str, Callable[[str, int], Awaitable[int]]]:
    """Ours, and those that are installed."""
    found: dict[str, Callable[[str, int], Awaitable[int]]] = {"pio bench serve": ours}
    if httpx is not None:
        found[f"httpx {httpx.__version__}"] = by_httpx
    if aiohttp is not None:
        found[f"aiohttp {aiohttp.__version__}"] = by_aiohttp
    return found


def cpu_us(client: Callable[[str, int], Awaitable[int]], url: str, count: int) -> float:
    """Microseconds of this process per chunk."""

    async def main() -> float:
        before = time.process_time()
        chunks = await client(url, count)
        assert chunks == STREAMS * count
        return 1e6 * (time.process_time() - before) / chunks

    return asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--quick", action="store_true", help="few chunks, to see that it runs")
    options = parser.parse_args()
    count, rounds = (100, 2) if options.quick else (2000, 5)
    found = clients()
    values: dict[str, list[float]] = {name: [] for name in found}
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        try:
            for client in found.values():
                cpu_us(client, url, 50)
            for _ in range(rounds):
                for name, client in found.items():
                    values[name].append(cpu_us(client, url, count))
        finally:
            server.kill()
    for name, each in values.items():
        print(f"{name:24} {statistics.median(each):7.1f} us of CPU per chunk")
    results = [
        {"name": f"CPU per chunk, {name}", "value": statistics.median(each), "values": each, "unit": "us"}
        for name, each in values.items()
    ]
    machine = machine_to_json(describe_machine())
    line = json.dumps(
        {"benchmark": "serve_client", "package": "pio-benchmarks", "results": results, "machine": machine}
    )
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
