"""A server against its engine: a child process that is started, measured and ended."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from inference_pio.benchmarks import _serve_overhead, _serve_server
from inference_pio.benchmarks._serve_floor import bare_token_us
from inference_pio.benchmarks._serve_overhead import (
    LoopTime,
    Overhead,
    main_thread_cpu_s,
    measure_overhead,
    overhead_block,
    overhead_measurements,
)
from inference_pio.benchmarks._serve_prompts import Prompt
from inference_pio.benchmarks._serve_server import free_port, running_server, serve_command
from inference_pio.interfaces import BrokenDependencyError, MissingDependencyError

SERVER = """
import http.server, json, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health" and self.headers["authorization"] == "Bearer wrong":
            self.reply(401, b"{}")
        elif self.path == "/health":
            self.reply(200 if time.monotonic() - begin > 0.2 else 503, b"{}")
        else:
            self.reply(200, json.dumps({"data": [{"id": "served"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        count = body["max_tokens"]
        ends = [None] * (count - 1) + ["length"]
        chunks = [{"choices": [{"text": " x", "finish_reason": end}]} for end in ends]
        usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": count}
        events = [json.dumps(chunk) for chunk in chunks] + [json.dumps({"choices": [], "usage": usage}), "[DONE]"]
        self.reply(200, "".join(f"data: {event}\\n\\n" for event in events).encode(), "text/event-stream")

    def log_message(self, *_):
        pass

begin = time.monotonic()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def overhead(timeline):
    """Three prompts: the server takes 2, 3 and 10 ms longer to the first token."""
    direct = tuple(timeline(0.0, 0.010, 0.030, tokens=3) for _ in range(3))
    served = tuple(timeline(0.0, 0.010 + late, 0.040 + late, tokens=3) for late in (0.002, 0.003, 0.010))
    return Overhead(served, direct, LoopTime(900.0, 41.5), LoopTime(800.0, 22.25), 8, 12.5)


def test_overhead_by_hand(overhead):
    """Differences of pairs, medians of sides; one value per prompt in the record."""
    assert overhead.ttft_ms == pytest.approx((2, 3, 10))
    assert overhead_block(overhead).splitlines()[1:-1] == [
        "Prompts asked of both sides:             3",
        "Median TTFT, engine (ms):                10.00",
        "Median TTFT, HTTP (ms):                  13.00",
        "Median TPOT, engine (ms):                10.00",
        "Median TPOT, HTTP (ms):                  15.00",
        "TTFT overhead, median (ms):              3.00 (2.00 to 10.00)",
        "CPU per token, 1 at once (us):           41.5",
        "CPU per request, 1 at once (us):         900.0",
        "CPU per token, 8 at once (us):           22.2",
        "CPU per request, 8 at once (us):         800.0",
        "CPU to wake up and send, 1 at once (us): 12.5",
    ]
    found = {each.name: each.values for each in overhead_measurements(overhead)}
    assert found["TTFT overhead"] == pytest.approx((2, 3, 10))
    assert found["TTFT, HTTP"] == pytest.approx((12, 13, 20))
    assert (found["CPU per token, 1 at once"], found["CPU per token, 8 at once"]) == ((41.5,), (22.25,))


def test_what_the_system_does_not_tell_is_not_made_up(timeline):
    """No figure rather than a zero; single tokens have no TPOT."""
    one = (timeline(0.0, 0.01, tokens=1),)
    unknown = Overhead(one, one, None, None, 8, 12.5)
    assert "CPU per token, 8 at once (us):           unknown" in overhead_block(unknown)
    assert {each.name for each in overhead_measurements(unknown)} == {
        "TTFT, engine",
        "TTFT, HTTP",
        "TTFT overhead",
        "CPU to wake up and send, 1 at once",
    }
    assert main_thread_cpu_s(2**22 + 1) is None


def test_tokens_are_told_from_requests(monkeypatch, timeline):
    """By answers of one token: with 300 us a request and 20 us a token, whatever runs at once, both come out."""
    spent = 0.0
    monkeypatch.setattr(_serve_overhead, "main_thread_cpu_s", lambda _pid: spent)

    class Fake:
        def __init__(self, cost):
            self.cost = cost

        async def send(self, prompt, timeline):
            nonlocal spent
            timeline.start = 0.0
            timeline.note_chunk(1.0, text=True)
            timeline.note_chunk(1.0 + 0.01 * (prompt.output_len - 1), text=True)
            timeline.output_tokens = prompt.output_len
            spent += self.cost * (300e-6 + 20e-6 * prompt.output_len)

    def make(length):
        return [Prompt("x", length or 5 + number) for number in range(4)]

    found = asyncio.run(measure_overhead(Fake(1), Fake(0), 0, make, concurrency=2, bare=lambda pace: 1e3 * pace))
    assert found.bare == pytest.approx(10)
    for loop in (found.alone, found.loaded):
        assert (loop.per_request, loop.per_token) == pytest.approx((300, 20))
    assert [len(found.served), len(found.direct)] == [4, 4]


def test_bare_tokens_cost_something():
    """And less than a server does, were it as slow as this: 50 ms."""
    assert 0 < bare_token_us(0.001, 20) < 50_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the time of single threads")
def test_time_of_the_first_thread():
    """It grows with work."""
    before = main_thread_cpu_s(os.getpid())
    sum(range(2_000_000))
    assert main_thread_cpu_s(os.getpid()) > before


def start(command, port, **more):
    async def main():
        async with running_server(command, port, **more) as (url, pid):
            return str(url), pid

    return asyncio.run(main())


def test_a_server_is_waited_for_and_ended():
    """Until it is healthy; nothing of it is left."""
    port = free_port()
    url, pid = start([sys.executable, "-c", SERVER, str(port)], port)
    assert url == f"http://127.0.0.1:{port}"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_servers_that_do_not_start():
    """With the last thing that they said; a key that is refused will not be accepted later."""
    port = free_port()
    with pytest.raises(BrokenDependencyError, match="the server refuses the key"):
        start([sys.executable, "-c", SERVER, str(port)], port, headers={"authorization": "Bearer wrong"})
    with pytest.raises(BrokenDependencyError, match="the server ended with code 3: cannot do it"):
        start([sys.executable, "-c", "print('cannot do it'); raise SystemExit(3)"], port)
    with pytest.raises(BrokenDependencyError, match=r"was not healthy after 0.3 s: it said nothing"):
        start([sys.executable, "-c", "import time; time.sleep(60)"], port, timeout_s=0.3)


def test_pio_serve_may_not_be_here(monkeypatch):
    """Exit code 5, and what to install."""
    monkeypatch.setattr(_serve_server.importlib.metadata, "entry_points", lambda **_: ())
    with pytest.raises(MissingDependencyError, match="pio serve is not installed") as caught:
        serve_command("m", 1)
    assert caught.value.hint == "pip install pio-serve"


def test_the_command_measures_both_sides(pio_bench, monkeypatch):
    """The child through HTTP, the same prompts straight into the engine; one record."""
    monkeypatch.setattr(_serve_server, "serve_command", lambda _model, port: [sys.executable, "-c", SERVER, str(port)])
    done = pio_bench(
        "serve", "--overhead", "--model", "smollm2-135m-instruct", "--num-prompts", 3, "--input-len", 16,
        "--output-len", 4, "--max-concurrency", 2, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = done.json
    assert record["benchmark"] == "serve-overhead"
    assert record["settings"]["model"] == "smollm2-135m-instruct"
    found = {each["name"]: each["values"] for each in record["results"]}
    assert [len(found[name]) for name in ("TTFT, engine", "TTFT, HTTP", "TTFT overhead")] == [3, 3, 3]
    assert found["TTFT overhead"] == pytest.approx(
        [served - direct for served, direct in zip(found["TTFT, HTTP"], found["TTFT, engine"], strict=True)]
    )
    if sys.platform.startswith("linux"):
        assert "CPU per token, 2 at once" in found
