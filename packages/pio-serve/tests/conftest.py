"""A real server on loopback with the real default model, once per session."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass

import pytest

from inference_pio.core import LLM
from inference_pio.serve import Bounds, KeyRing, PioServer, ServeSettings

KEY = "test-key-of-the-session"
BOUNDS = Bounds(header_s=1.0, body_s=1.0, write_s=1.5)


@dataclass
class Running:
    """A server in a thread of this process, so that tests can look at its engine."""

    server: PioServer
    thread: threading.Thread
    key: str = KEY

    @property
    def host(self):
        return "127.0.0.1"

    @property
    def port(self):
        return int(self.server.address.rpartition(":")[2])

    @property
    def url(self):
        return self.server.address

    @property
    def model(self):
        return self.server.state.models.all()[0]

    @property
    def engine(self):
        return self.model.llm._engine

    def ask(self, method, path, body=None, *, headers=None, key=KEY, timeout=60):
        """Status, headers, and the body as JSON where it is some."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        sent = {} if key is None else {"authorization": f"Bearer {key}"}
        if body is not None:
            sent["content-type"] = "application/json"
            body = body if isinstance(body, bytes | str) else json.dumps(body)
        connection.request(method, path, body, {**sent, **(headers or {})})
        reply = connection.getresponse()
        raw = reply.read()
        connection.close()
        got = {name.lower(): value for name, value in reply.getheaders()}
        as_json = got.get("content-type", "").startswith("application/json")
        return reply.status, got, json.loads(raw) if as_json else raw

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def chat(self, text="Say hello.", **more):
        """A chat completion that must succeed."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **more}
        status, _, reply = self.post("/v1/chat/completions", body)
        assert status == 200, reply
        return reply

    def wait_until_idle(self, seconds=10.0):
        """No sequence waits or runs, and no page is owned by one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            scheduler = self.engine.scheduler
            if not scheduler.running and not scheduler.waiting and self.engine.cache.usage == 0:
                return
            time.sleep(0.02)
        raise AssertionError(f"{len(self.engine.scheduler.running)} still run, cache at {self.engine.cache.usage}")


def start(settings, load):
    """Run a server in a thread until its model is there, or loading failed."""
    ready = threading.Event()
    server = PioServer(settings, "model", load, on_ready=lambda *_: ready.set())

    def run():
        server.run()
        ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    return Running(server, thread)


@pytest.fixture(scope="session")
def load_model():
    return lambda: LLM("smollm2-135m-instruct", executor="native", max_model_len=2048, max_num_seqs=8, threads=1)


@pytest.fixture(scope="session")
def served(load_model):
    """The server that most tests share."""
    settings = ServeSettings(port=0, keys=KeyRing([KEY]), bounds=BOUNDS, keep_alive_s=0.3, drain_s=5)
    running = start(settings, load_model)
    yield running
    running.server.drain()
    running.thread.join(20)
    assert not running.thread.is_alive()


@pytest.fixture
def start_server(load_model):
    """Starts servers with other settings; they end with the test."""
    started = []

    def begin(load=load_model, **settings):
        running = start(ServeSettings(port=0, **settings), load)
        started.append(running)
        return running

    yield begin
    for running in started:
        running.server.drain()
        running.thread.join(20)
        assert not running.thread.is_alive()
