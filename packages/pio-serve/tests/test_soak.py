"""A long mixed load from a client that is killed and started again: nothing leaks, and each request has one answer.

``PIO_SOAK_SECONDS=600 pytest -m slow packages/pio-serve/tests/test_soak.py -s`` is the run of record; a report is
printed, and written to the file that ``PIO_SOAK_REPORT`` names.

The server runs in this process, so that its engine can be looked at; all clients run in one other process, twelve of
them against eight seats, so the engine is never without work. That process is killed, not asked to end, several times.
What is held to what:

- Each request has an id. The server logs one line per request that it has read, never two; each that the client saw
  answered is among them with the same status; each that is not answered was left, or cut off with its client.
- Every body is whole and one: a single JSON document, or a stream with exactly one end, which comes last.
- The engine ends as many requests as it admitted: finished, or cancelled because the client had gone; none failed.
- After each half no sequence, page, stream or connection is left, and no more objects are alive than before,
  but for 500 that may be anyone's.
- Memory: over the second half, Theil and Sen's line (the median of all slopes between samples, which steps and
  outliers do not move) must rise by less than 8 MiB. The first half fills caches and pools, and is not judged.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median

import psutil
import pytest

from inference_pio.core import LLM

SECONDS = float(os.environ.get("PIO_SOAK_SECONDS", "120"))
LIVES = 6 if SECONDS >= 240 else 3
"""How often the client is started in each half; all but the last time it is killed."""
GROWTH_BYTES = 8 << 20
GROWTH_OBJECTS = 500
CLIENT = r'''
import http.client, json, random, socket, sys, threading, time

port, seed, until = int(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
lock = threading.Lock()


def tell(*entry):
    with lock:
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()


def words(draw):
    return " ".join(draw.choice(["red", "green", "blue", "one", "two"]) for _ in range(draw.randrange(1, 80)))


def make(draw):
    """Name, path and body of a request, and whether its client goes away before the end."""
    tokens, stream = draw.randrange(1, 40), draw.random() < 0.5
    said = [{"role": "user", "content": words(draw)}]
    chat = {"messages": said, "max_tokens": tokens, "stream": stream}
    kinds = [
        ("chat", CHAT, {**chat, "logprobs": True, "top_logprobs": 2}),
        ("chat", CHAT, {**chat, "n": 2, "temperature": 1.0}),
        ("chat with a form", CHAT, {**chat, "structured_outputs": {"json": SCHEMA}}),
        ("completion", TEXT, {"prompt": [words(draw), words(draw)], "max_tokens": tokens, "stream": stream}),
        ("completion", TEXT, {"prompt": words(draw), "max_tokens": tokens, "echo": True, "logprobs": 1}),
        ("response", RESPONSES, {"input": words(draw), "max_output_tokens": tokens, "stream": stream}),
        ("message", MESSAGES, {"messages": said, "max_tokens": tokens, "stream": stream}),
        ("tokenize", "/tokenize", {"prompt": words(draw)}),
        ("detokenize", "/detokenize", {"tokens": [draw.randrange(1000) for _ in range(tokens)]}),
        ("bad value", CHAT, {**chat, "temperature": -1}),
        ("bad JSON", TEXT, None),
        ("bad model", MESSAGES, {"messages": said, "max_tokens": 4, "model": "nobody"}),
        ("bad path", "/v1/nothing", {}),
        ("left", CHAT, {**chat, "stream": True, "max_tokens": 500, "ignore_eos": True}),
        ("left", CHAT, {**chat, "stream": False, "n": 3, "max_tokens": 500, "ignore_eos": True}),
        ("left", RESPONSES, {"input": words(draw), "max_output_tokens": 500, "stream": stream}),
    ]
    return draw.choice(kinds)


def is_whole(reply, raw):
    """Whether a body is one document, or a stream with one end, at its end."""
    if not reply.getheader("content-type", "").startswith("text/event-stream"):
        return isinstance(json.loads(raw), dict)
    events = raw.decode().removesuffix("\n\n").split("\n\n")
    ends = [event for event in events if event == "data: [DONE]" or event.startswith(
        ("event: message_stop", "event: response.completed", "event: response.incomplete"))]
    failed = any(event.startswith(("event: error", 'data: {"error"')) for event in events)
    return len(ends) == 1 and events[-1] == ends[0] and not failed


def one(draw, name):
    kind, path, body = make(draw)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = b"{" if body is None else json.dumps(body).encode()
    tell("begun", name, kind)
    connection.request("POST", path, raw, {"content-type": "application/json", "x-request-id": name})
    if kind == "left":
        time.sleep(draw.random() * 0.2)
        if draw.random() < 0.5 and body.get("stream"):
            connection.getresponse().read(64)
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        tell("left", name, kind)
        return
    reply = connection.getresponse()
    raw = reply.read()
    if not is_whole(reply, raw):
        tell("broken", name, kind, reply.status, raw[-300:].decode(errors="replace"))
    tell("answered", name, kind, reply.status)
    connection.close()


def work(worker):
    draw = random.Random(f"{seed} {worker}")
    count = 0
    while time.monotonic() < until:
        count += 1
        name = f"soak-{seed}-{worker}-{count}"
        try:
            one(draw, name)
        except Exception as error:
            tell("broken", name, type(error).__name__, 0, repr(error))


threads = [threading.Thread(target=work, args=(worker,)) for worker in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
'''


def load_small():
    """The model with a cache that is full soon: its memory is taken when a page is first written."""
    return LLM("smollm2-135m-instruct", max_model_len=640, max_num_seqs=8, kv_cache_bytes=48 << 20, threads=1)


class Memory(threading.Thread):
    """Samples this process's resident memory."""

    def __init__(self, every_s):
        super().__init__(daemon=True)
        self.samples = []
        self._every_s = every_s
        self._ended = threading.Event()

    def run(self):
        process, started = psutil.Process(), time.monotonic()
        while not self._ended.wait(self._every_s):
            self.samples.append((time.monotonic() - started, process.memory_info().rss))

    def end(self):
        self._ended.set()
        self.join()
        return self.samples


def slope(samples):
    """Bytes per second: the median over all pairs (Sen 1968, Estimates of the regression coefficient)."""
    pairs = [
        (after - before) / (later - sooner)
        for place, (sooner, before) in enumerate(samples)
        for later, after in samples[place + 1 :]
    ]
    return median(pairs)


def run_clients(port, seconds, seed, told):
    """The client in one life after the other, of random lengths; all but the last end by a kill."""
    for life in range(LIVES):
        last = life == LIVES - 1
        with told.open("ab") as out:
            command = [sys.executable, "-c", CLIENT, str(port), str(seed * LIVES + life), str(seconds / LIVES)]
            process = subprocess.Popen(command, stdout=out)
            if last:
                assert process.wait(seconds + 120) == 0
            else:
                time.sleep(seconds / LIVES)
                process.kill()
                process.wait()


def half(running, seconds, seed, told):
    """Half of the soak, and what is left behind by it once the server is idle: samples of memory, live objects."""
    memory = Memory(max(seconds / 150, 0.1))
    memory.start()
    run_clients(running.port, seconds, seed, told)
    samples = memory.end()
    running.wait_until_idle(30)
    deadline = time.monotonic() + 10
    while running.server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running.server.server_state.connections
    assert not running.model.engine._streams
    gc.collect()
    return samples, len(gc.get_objects())


def read_told(told):
    """What the client said of each request: the last word, and what was broken."""
    said, kinds, broken = {}, {}, []
    for line in told.read_text().splitlines():
        if not line.endswith("]"):
            continue  # cut off with its client
        word, name, kind, *more = json.loads(line)
        kinds[name] = kind
        if word == "broken":
            broken.append((name, kind, *more))
        else:
            said[name] = (word, *more)
    return said, kinds, broken


def read_log(log):
    """Status of each request that the server has logged, by its id; an id twice is an error."""
    found = {}
    for line in log.read_text().splitlines():
        words = line.split()
        name, status = next(word for word in words if word.startswith("soak-")), int(words[2])
        assert name not in found, name
        found[name] = status
    return found


@pytest.fixture
def access_log(tmp_path):
    """The server's access log in a file; what is not of the soak is left out."""
    logger = logging.getLogger("inference_pio.serve.access")
    with (tmp_path / "access.log").open("w", buffering=1) as out:

        def keep(record):
            line = record.getMessage()
            if " soak-" in line:
                out.write(line + "\n")
            return False  # no handler gets it: pytest's would keep every record in memory

        before = logger.level
        logger.addFilter(keep)
        logger.setLevel(logging.INFO)
        yield tmp_path / "access.log"
        logger.removeFilter(keep)
        logger.setLevel(before)


def test_slope_is_that_of_most():
    """Steps and outliers do not move it."""
    line = [(float(at), 1000.0 + 3 * at) for at in range(50)]
    assert slope(line) == 3
    assert slope([*line[:20], (20.0, 9e9), *line[21:]]) == 3
    assert slope([(float(at), 5.0 + (100 if at > 45 else 0)) for at in range(50)]) == 0


@pytest.mark.slow
def test_soak(start_server, tmp_path, access_log):
    """Every request gets the one answer that it may get; pages, objects and memory are as before."""
    running = start_server(load=load_small)
    told = tmp_path / "told.jsonl"
    _, objects_before = half(running, SECONDS / 2, 1, told)
    samples, objects = half(running, SECONDS / 2, 2, told)
    said, kinds, broken = read_told(told)
    logged = read_log(access_log)
    metrics = running.model.engine.snapshot()
    ends = {str(reason): int(count) for reason, count in metrics.requests_finished.values.items()}
    growth = slope(samples) * SECONDS / 2
    outcomes = Counter(f"{kinds[name]}: {' '.join(map(str, words))}" for name, words in said.items())
    report = {
        "seconds": SECONDS,
        "requests": len(said),
        "requests_per_s": round(len(said) / SECONDS, 1),
        "tokens_per_s": round(metrics.generation_tokens.total / SECONDS, 1),
        "clients_killed": 2 * (LIVES - 1),
        "cut_off": sum(words[0] == "begun" for words in said.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "engine": {"admitted": metrics.request_n.count, "ended": ends},
        "rss_mib": {"first": round(samples[0][1] / 2**20, 1), "last": round(samples[-1][1] / 2**20, 1)},
        "rise_mib_second_half": round(growth / 2**20, 3),
        "objects": {"after_first_half": objects_before, "after_second_half": objects},
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if "PIO_SOAK_REPORT" in os.environ:
        Path(os.environ["PIO_SOAK_REPORT"]).write_text(json.dumps(report, indent=2))

    assert broken == []
    answered = {name: words[1] for name, words in said.items() if words[0] == "answered"}
    assert {name: logged.get(name) for name in answered} == answered
    assert logged.keys() <= said.keys()
    for name, status in answered.items():
        wanted = {"bad model": {404}, "bad path": {404}, "bad value": {400}, "bad JSON": {400}}
        assert status in wanted.get(kinds[name], {200, 429}), (kinds[name], status)
    assert sum(status == 200 for status in answered.values()) > SECONDS / 2
    assert sum(words[0] == "left" for words in said.values()) > SECONDS / 4
    assert ends.keys() <= {"stop", "length", "abort"}
    assert sum(ends.values()) == metrics.request_n.count
    assert growth < GROWTH_BYTES
    assert objects - objects_before < GROWTH_OBJECTS
    assert running.chat()["choices"][0]["message"]["content"]
