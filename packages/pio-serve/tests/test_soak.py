"""A long mixed load: answers, streams, bad requests, clients that go away; nothing leaks and nobody waits for ever."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from collections import Counter

import psutil
import pytest

from inference_pio.core import LLM

SECONDS = float(os.environ.get("PIO_SOAK_SECONDS", "120"))
CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


def load_small():
    """The model with a cache that is full soon: its memory is taken when a page is first written."""
    return LLM("smollm2-135m-instruct", max_model_len=640, max_num_seqs=8, kv_cache_bytes=48 << 20, threads=1)


def body_of(draw, **more):
    words = " ".join(draw.choice(["red", "green", "blue", "one", "two"]) for _ in range(draw.randrange(1, 80)))
    return {"messages": [{"role": "user", "content": words}], "max_tokens": draw.randrange(1, 40), **more}


def ask(running, body):
    return running.post(CHAT, body, key=None)[0]


def leave(running, body, draw):
    """Go away after a while, with or without a part of the answer."""
    connection = http.client.HTTPConnection(running.host, running.port, timeout=30)
    connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
    time.sleep(draw.random() * 0.1)
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    return "left"


def one(running, draw):
    """A request of a random kind, and how it was answered."""
    kind = draw.randrange(7)
    if kind == 0:
        return ask(running, {**body_of(draw), "temperature": -1})
    if kind == 1:
        return ask(running, "{")
    if kind == 2:
        return leave(running, body_of(draw, stream=True, max_tokens=500), draw)
    if kind == 3:
        return leave(running, body_of(draw, n=3), draw)
    if kind == 4:
        return ask(running, body_of(draw, structured_outputs={"json": SCHEMA}))
    return ask(running, body_of(draw, stream=bool(kind == 5), logprobs=True, top_logprobs=2))


def load(running, seed, until, answers, problems):
    draw = random.Random(seed)  # noqa: S311 - a load, not a secret
    while time.monotonic() < until:
        try:
            answers[one(running, draw)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails with it
            problems.append(repr(error))


def run(running, seconds):
    answers: Counter = Counter()
    problems: list[str] = []
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=load, args=(running, seed, until, answers, problems)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    assert not any(thread.is_alive() for thread in threads)
    assert problems == []
    return answers


@pytest.mark.slow
def test_soak(start_server):
    """Every request gets one of the answers that it may get; pages and memory are as before."""
    running = start_server(load=load_small)
    process = psutil.Process()
    run(running, SECONDS / 2)  # what is allocated once, is allocated now
    running.wait_until_idle()
    before = process.memory_info().rss
    answers = run(running, SECONDS)
    running.wait_until_idle()
    grown = process.memory_info().rss - before
    assert set(answers) <= {200, 400, 429, "left"}
    assert min(answers[200], answers[400], answers["left"]) > 10
    assert grown < 24 << 20
    assert running.server.state.open == 0
    assert not running.model.engine._streams
    assert running.chat()["choices"][0]["message"]["content"]
