"""A router before two replicas with the real default model: processes that end, clients, metrics, prefixes."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from inference_pio.serve import Bounds, KeyRing, ServeSettings
from inference_pio.serve._command import serve as command
from inference_pio.serve._router import replicas as processes
from inference_pio.serve._router.balance import Balance
from inference_pio.serve._router.command import replica_orders
from inference_pio.serve._router.server import RouterServer
from inference_pio.serve._routes import ROUTES
from inference_pio.serve._scrape import MetricsSource, parse_metrics
from inference_pio.serve._top import Readings

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "key-of-the-router"
CHAT = "/v1/chat/completions"
STORY = "Once upon a time there was a fox who lived in a wood and read books. "


@dataclass
class Routed:
    """A router in a thread of this process; its replicas are processes."""

    server: RouterServer
    thread: threading.Thread
    ask_at: Callable

    @property
    def router(self):
        return self.server.router

    @property
    def port(self):
        return int(self.server.address.rpartition(":")[2])

    def pids(self):
        return [replica.process.pid for replica in self.router.replicas.all]

    def ask(self, method, path, body=None, **more):
        return self.ask_at(self.port, method, path, body, **{"key": KEY, **more})

    def chat(self, text, **more):
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 4, **more}
        status, _, reply = self.ask("POST", CHAT, body)
        assert status == 200, reply
        return reply

    def scrape(self):
        return parse_metrics(self.ask("GET", "/metrics")[2].decode())

    def value(self, name, replica):
        [found] = [value for labels, value in self.scrape().samples[name] if labels.get("replica") == str(replica)]
        return found

    def wait_until(self, condition, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stream(self, max_tokens=2000):
        """A connection on which an answer comes, once it has begun."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {
            "messages": [{"role": "user", "content": "Count."}], "stream": True, "max_tokens": max_tokens,
            "ignore_eos": True, "temperature": 0,
        }  # fmt: skip
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", CHAT, json.dumps(body), headers)
        reply = connection.getresponse()
        assert reply.status == 200
        for _ in range(6):
            reply.readline()
        [place] = [place for place, load in enumerate(self.router.balance.loads) if load.open]
        return connection, reply, place


@pytest.fixture(scope="module")
def routed(ask_at):
    with pytest.MonkeyPatch.context() as patch:
        # As always, only sooner.
        patch.setattr(processes, "WATCH_S", 0.2)
        patch.setattr(processes, "BACK_OFF_S", (0.1, 0.2))
        yield from run_router(ask_at)


def run_router(ask_at):
    arguments = ["--max-model-len", "2048", "--max-num-seqs", "8", "--replicas", "2"]
    options = {**command.make_context("serve", arguments).params}
    options.pop("models")
    ready = threading.Event()
    settings = ServeSettings(port=0, keys=KeyRing([KEY]), bounds=Bounds(body_bytes=100_000), drain_s=5)
    order = replica_orders(("smollm2-135m-instruct",), options, 1)
    server = RouterServer(settings, [None, None], order, on_ready=lambda *_: ready.set())

    def run():
        server.run()
        ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    assert server.failure is None
    yield Routed(server, thread, ask_at)
    pids = [replica.process.pid for replica in server.router.replicas.all]
    server.drain()
    thread.join(20)
    assert not thread.is_alive()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_answers_as_a_server_does(routed, served):
    """The same words, in the same shape, with the client's request id."""
    single = served.chat("Name the capital of France.")
    reply = routed.chat("Name the capital of France.", max_tokens=8)
    assert reply["choices"] == single["choices"]
    assert reply["usage"]["prompt_tokens"] == single["usage"]["prompt_tokens"]
    _, headers, _ = routed.ask("GET", "/v1/models", headers={"x-request-id": "my-id"})
    assert headers["x-request-id"] == "my-id"


def test_clients_notice_nothing(routed):
    """OpenAI's own: streamed, with the last chunk's usage; errors of its classes."""
    client = openai.OpenAI(base_url=f"{routed.server.address}/v1", api_key=KEY, max_retries=0)
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "Say hello."}]
    chunks = list(
        client.chat.completions.create(
            model=model, messages=messages, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage.completion_tokens <= 6
    assert len(chunks) > 3
    with pytest.raises(openai.BadRequestError, match="temperature must"):
        client.chat.completions.create(model=model, messages=messages, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="other", messages=messages)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_needs_a_key(routed, route):
    """But the one that only says that the process lives; whoever has none learns nothing else."""
    path = route.path.replace("{model:path}", "x").replace("{name}", "chat.js")
    body = {} if route.method == "POST" else None
    status, _, _ = routed.ask(route.method, path, body, key=None)
    assert status == (200 if path == "/livez" else 401)


def test_the_layers_of_a_server_are_before_it(routed):
    """Names of the host, bounds, unknown paths and methods."""
    assert routed.ask("GET", "/health", headers={"host": "evil.example"})[0] == 421
    assert routed.ask("GET", "/health", headers={"origin": "http://evil.example"})[0] == 403
    assert routed.ask("POST", CHAT, b"x" * 100_001)[0] == 413
    assert routed.ask("GET", "/nothing")[0] == 404
    assert routed.ask("GET", CHAT)[0] == 405
    assert routed.ask("POST", CHAT, "{")[0] == 400
    assert routed.ask("GET", "/dashboard")[0] == 200


def test_replicas_let_nobody_else_in(routed):
    """Their folder is the user's alone, and their key no one else knows; it is in no argument or environment."""
    replicas = routed.router.replicas
    folder = replicas.all[0].socket.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(replicas.all[0].socket))
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-pio-key-id: me\r\nconnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    for pid in routed.pids():
        process = psutil.Process(pid)
        assert replicas.key not in " ".join([*process.cmdline(), *process.environ().values()])


def test_tokens_count_over_all_replicas(routed, monkeypatch):
    """Replicas tell the router what each key has used; it holds the limits."""
    replicas = routed.router.replicas
    assert replicas._on_spent == routed.router.server.spend
    spent = []
    monkeypatch.setattr(replicas, "_on_spent", lambda key_id, tokens: spent.append((key_id, tokens)))
    key_id = KeyRing([KEY]).key_id(KEY.encode())
    used = [(key_id, routed.chat(text)["usage"]["total_tokens"]) for text in ("One.", "Two.", "Three.")]
    routed.wait_until(lambda: sorted(spent) == sorted(used))


def test_streams_as_they_come(routed):
    """The first events long before the last; a client that leaves ends what is done for it."""
    connection, reply, place = routed.stream()
    assert routed.value("pio:num_requests_running", place) == 1
    assert routed.value("pio:router_open_requests", place) == 1
    reply.close()
    connection.close()
    routed.wait_until(lambda: routed.value("pio:num_requests_running", place) == 0, 5)
    assert routed.value("pio:router_open_requests", place) == 0


def test_metrics(routed):
    """Prometheus' own parser reads them; each family comes once; pio top adds replicas up."""

    def asked_for_health():
        samples = routed.scrape().samples["http_requests_total"]
        return sum(value for labels, value in samples if labels["handler"] == "/health")

    asked = asked_for_health()
    for place in (0, 1):
        routed.router.balance.begin(1 - place, [])  # so that the other one is asked
        routed.chat("Hello.")
        routed.router.balance.end(1 - place)
    text = routed.ask("GET", "/metrics")[2].decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    by_name = {family.name: family for family in families}
    running = by_name["pio:num_requests_running"].samples
    assert sorted(sample.labels["replica"] for sample in running) == ["0", "1"]
    assert by_name["pio:router_requests"].type == "counter"
    assert by_name["pio:time_to_first_token_seconds"].type == "histogram"
    # Requests over HTTP are the router's own: those to replicas, which it also asks for other reasons, do not count.
    chats = [one for one in by_name["http_requests"].samples if one.labels["handler"] == CHAT]
    assert all("replica" not in one.labels for one in chats)
    assert sum(one.value for one in chats) >= 2
    time.sleep(2 * processes.WATCH_S)
    assert asked_for_health() == asked
    readings = Readings(MetricsSource(routed.server.address, KEY), 0.1)
    readings.take()
    figures = readings.history[-1]
    assert figures.models == ["smollm2-135m-instruct"]
    total = sum(routed.value("pio:e2e_request_latency_seconds_count", place) for place in (0, 1))
    assert sum(figures.finished.values()) == total


class Turns(Balance):
    """Chooses in turns whatever is asked, which is what prefixes are compared with."""

    def choose(self, ready, blocks):  # noqa: ARG002 - whatever they are
        return ready[sum(load.requests for load in self.loads) % len(ready)]


def test_prefixes_are_found_more_often(routed):
    """Three conversations take turns: who knows a prompt is asked again, and reads less of it than in turns."""
    usual = routed.router.balance

    def cached(balance, salt):
        routed.router.balance = balance
        found = 0
        for turn, topic in itertools.product(range(3), range(3)):
            text = f"{salt} {topic}. " + STORY * 10 + "And then? " * turn
            found += routed.chat(text, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    before = routed.scrape().total("pio:prefix_cache_hits_total")
    chosen = cached(Balance(2), "a")
    between = routed.scrape().total("pio:prefix_cache_hits_total")
    in_turns = cached(Turns(2), "b")
    after = routed.scrape().total("pio:prefix_cache_hits_total")
    routed.router.balance = usual
    assert (between - before, after - between) == (chosen, in_turns)
    # All but the first of each conversation, 6 of 9; in turns, 3 of 9.
    assert chosen > 1.5 * in_turns


def kill(routed, place):
    os.kill(routed.router.replicas.all[place].process.pid, signal.SIGKILL)


def test_a_replica_that_is_killed(routed):
    """Its stream ends with an error; others go on at once; it is started again, and serves."""
    connection, reply, place = routed.stream()
    lives = routed.router.replicas.all[place].lives
    kill(routed, place)
    rest = reply.read()
    connection.close()
    assert rest.endswith(b"data: [DONE]\n\n")
    [error] = [json.loads(line[6:]) for line in rest.split(b"\n") if line.startswith(b'data: {"error"')]
    assert error["error"]["code"] == "replica_failed"
    assert routed.chat("Hello.")["choices"]
    routed.wait_until(lambda: not routed.router.replicas.all[place].takes_requests)
    status, _, health = routed.ask("GET", "/health")
    assert (status, health) == (200, {"status": "ok", "replicas": 2, "ready": 1})
    assert routed.chat("Hello.")["choices"]
    routed.wait_until(lambda: len(routed.router.replicas.ready) == 2)
    assert routed.ask("GET", "/health")[2]["ready"] == 2
    assert routed.router.replicas.all[place].lives == lives + 1
    assert routed.value("pio:router_restarts_total", place) == lives


def test_an_answer_that_nothing_was_sent_of(routed):
    """Is made by another replica when the first one is killed over it."""
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(routed.chat("Count.", max_tokens=300, ignore_eos=True)), daemon=True
    )
    asking.start()
    loads = routed.router.balance.loads
    routed.wait_until(lambda: any(load.open for load in loads))
    time.sleep(0.1)
    [place] = [place for place, load in enumerate(loads) if load.open]
    retries = routed.router.retries
    kill(routed, place)
    asking.join(60)
    assert answers[0]["usage"]["completion_tokens"] == 300
    assert routed.router.retries == retries + 1
    routed.wait_until(lambda: len(routed.router.replicas.ready) == 2)


def test_a_replica_that_is_asked_to_leave(routed):
    """Finishes what it has, is given nothing new, and is started again."""
    connection, reply, place = routed.stream(max_tokens=150)
    replica = routed.router.replicas.all[place]
    lives = replica.lives
    os.kill(replica.process.pid, signal.SIGTERM)
    routed.wait_until(lambda: not replica.takes_requests)
    requests = routed.router.balance.loads[place].requests
    assert routed.chat("Hello.")["choices"]
    assert routed.router.balance.loads[place].requests == requests
    rest = reply.read()
    connection.close()
    assert b'"finish_reason":"length"' in rest
    assert b'"error"' not in rest
    routed.wait_until(lambda: len(routed.router.replicas.ready) == 2)
    assert replica.lives == lives + 1


@pytest.mark.slow
def test_a_replica_that_hangs(routed, monkeypatch):
    """Is given nothing new once it does not answer; after a while it is ended and started again."""
    monkeypatch.setattr(processes, "ANSWER_S", 3.0)
    monkeypatch.setattr(processes, "HUNG_S", 1.0)
    replica = routed.router.replicas.all[0]
    lives = replica.lives
    os.kill(replica.process.pid, signal.SIGSTOP)
    routed.wait_until(lambda: not replica.takes_requests)
    assert replica.state == "failing"
    requests = routed.router.balance.loads[0].requests
    assert routed.chat("Hello.")["choices"]
    assert routed.router.balance.loads[0].requests == requests
    routed.wait_until(lambda: len(routed.router.replicas.ready) == 2)
    assert replica.lives == lives + 1
