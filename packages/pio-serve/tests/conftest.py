"""A real server on loopback with the real default model, once per session, and as a process."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_pio.core import LLM
from inference_pio.serve import Bounds, KeyRing, PioServer, ServeSettings

KEY = "test-key-of-the-session"
CHAT = "/v1/chat/completions"
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

    def ask(self, method, path, body=None, **more):
        """As the fixture ``ask_at``, at its port."""
        return ask(self.port, method, path, body, **more)

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def chat(self, text="Say hello.", **more):
        """A chat completion that must succeed."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **more}
        status, _, reply = self.post(CHAT, body)
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


def ask(port, method, path, body=None, *, headers=None, key=KEY, timeout=60):
    """Status, headers, and the body as JSON where it is some."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
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


def start(settings, load, models=()):
    """Run a server in a thread until it has loaded what it begins with, or loading failed."""
    ready = threading.Event()
    given = {"name": "model", "load": load} if not models else {"models": models}
    call = "on_listening" if settings.preload == "none" else "on_ready"
    server = PioServer(settings, **given, **{call: lambda *_: ready.set()})

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


def servers(load_model):
    """Starts servers with other settings; they end with the test, or with the module."""
    started = []

    def begin(load=load_model, models=(), **settings):
        running = start(ServeSettings(port=0, **settings), load, models)
        started.append(running)
        return running

    yield begin
    for running in started:
        running.server.drain()
        running.thread.join(20)
        assert not running.thread.is_alive()


start_server = pytest.fixture(servers)
start_module_server = pytest.fixture(scope="module")(servers)


@pytest.fixture(scope="session")
def ask_at():
    """Asks whoever listens at a port of this machine: status, headers, and the body as JSON where it is some."""
    return ask


@pytest.fixture(scope="session")
def ask_app():
    """Asks an application without a server: status, headers and body, in bytes, of a request with an empty object."""

    def ask_directly(app, path, headers=(), method="GET"):
        sent = []
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
        }  # fmt: skip
        bodies = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive():
            return bodies.pop() if bodies else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(part["body"] for part in sent[1:])

    return ask_directly


class Process:
    """``pio serve`` as a process; its environment has the session's key, unless told otherwise."""

    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inference_pio.cli", "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PIO_SERVE_API_KEY": KEY, **environment},
        )
        self.lines = []
        self.key = KEY

    def wait_for(self, text):
        """The first line with ``text`` in it."""
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} never came: {self.lines}")

    @property
    def port(self):
        return int(re.search(r"http://127\.0\.0\.1:(\d+)", "".join(self.lines))[1])

    def ask(self, method, path, body=None):
        """As the fixture ``ask_at``, at its port and with its key."""
        return ask(self.port, method, path, body, key=self.key)

    def wait_for_running(self, count, unless=()):
        """Until its engines run so many requests, or there is something in ``unless``."""
        deadline = time.monotonic() + 10
        while not unless:
            lines = self.ask("GET", "/metrics")[2].decode().splitlines()
            if sum(float(line.split()[-1]) for line in lines if line.startswith("pio:num_requests_running{")) == count:
                return
            assert time.monotonic() < deadline, lines
            time.sleep(0.01)

    def chat(self, max_tokens):
        """Status of a chat completion of so many tokens, and what came."""
        status, _, reply = self.ask("POST", CHAT, self.chat_body(max_tokens))
        return status, reply

    def chat_stream(self, max_tokens):
        """The response to the same as a stream, not read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json", "connection": "close"}
        connection.request("POST", CHAT, json.dumps({**self.chat_body(max_tokens), "stream": True}), headers)
        return connection.getresponse()

    def chat_body(self, max_tokens):
        return {"messages": [{"role": "user", "content": "Count."}], "max_tokens": max_tokens, "ignore_eos": True}

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def start_process():
    """Starts ``pio serve`` with other arguments and environments; what still runs is killed with the test."""
    started = []

    def begin(*arguments, **environment):
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield begin
    for one in started:
        one.end()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Makes folders with tiny random models of their own names, with a tokenizer of numbers."""

    def make(name, seed=0, **sizes):
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        write_tiny_model(folder, seed=seed, **sizes)
        return folder

    return make


def write_tiny_model(folder, *, seed, layers=2, hidden=64, vocab=131, context=256):
    """A Llama in float32 whose weights are drawn: ``config.json``, safetensors and ``tokenizer.json``."""
    random = np.random.default_rng(seed)

    def matrix(rows, columns):
        return (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    ones = np.ones(hidden, np.float32)
    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "lm_head.weight": matrix(vocab, hidden)}
    tensors["model.norm.weight"] = ones
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{name}_layernorm.weight": ones for name in ("input", "post_attention")}
        for name, rows in (("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("o", hidden)):
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = matrix(rows, hidden)
        for name, shape in (("gate", (96, hidden)), ("up", (96, hidden)), ("down", (hidden, 96))):
            tensors[f"{prefix}.mlp.{name}_proj.weight"] = matrix(*shape)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    words = ["<unk>", "<s>", "</s>", *(f"▁w{number}" for number in range(3, vocab))]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[word, -1.0] for word in words]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
