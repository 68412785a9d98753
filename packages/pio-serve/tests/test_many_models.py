"""Several models behind one server, loaded when they are asked for: the real one, and tiny ones with drawn weights."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from dataclasses import replace

import psutil
import pytest

from inference_pio.config import load_settings
from inference_pio.core import LLM
from inference_pio.serve import KeyRing
from inference_pio.serve._models.files import model_spec
from inference_pio.serve._models.spec import ModelSpec

MIB = 2**20
REAL = "smollm2-135m-instruct"


def spec(model, name=None, gate=None, **flags):
    """As ``pio serve`` makes it; with a gate, loading waits for it."""
    flags = {"threads": "1", "max_num_seqs": "4", "executor": "native", **flags}
    settings = load_settings(flags={"model": str(model), **flags}).settings
    found = model_spec(settings, served_as=name, by_name=True)
    if gate is None:
        return found

    def plan(budget):
        planned = found.plan(budget)

        def load():
            assert gate.wait(20)
            return planned.load()

        return replace(planned, load=load)

    return ModelSpec(label=found.label, plan=plan, served_as=name)


def complete(server, model, **more):
    body = {"model": model, "prompt": "w5 w6 w7", "max_tokens": 4, "ignore_eos": True, "temperature": 0, **more}
    return server.post("/v1/completions", body, key=None)


def states(server):
    return {card["id"]: card["status"] for card in server.ask("GET", "/v1/models", key=None)[2]["data"]}


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folders(tiny_model):
    return [tiny_model(name, seed=seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture
def server(start_server, folders):
    """The real model is loaded, two tiny ones are not, and all fit."""
    models = [spec(REAL), spec(folders[0]), spec(folders[1], "org/second:v1")]
    return start_server(models=models, memory_budget=700 * MIB)


def test_each_name_answers_with_its_own_model(server, folders):
    """The same tokens as each model alone; the list says what is loaded, and requests load what is not."""
    assert states(server) == {REAL: "loaded", "one": "unloaded", "org/second:v1": "unloaded"}
    texts = {}
    for name, folder in (("one", folders[0]), ("org/second:v1", folders[1])):
        status, _, reply = complete(server, name)
        assert status == 200
        assert reply["model"] == name
        texts[name] = reply["choices"][0]["text"]
        with LLM(folder, executor="native", threads=1, packed_cache_bytes=0) as alone:
            [output] = alone.generate("w5 w6 w7", _greedy(4))
        assert texts[name] == output.outputs[0].text
    assert len(set(texts.values())) == 2
    assert set(states(server).values()) == {"loaded"}
    status, _, reply = complete(server, REAL, prompt="The capital of France is")
    assert (status, reply["choices"][0]["text"][:6]) == (200, " Paris")
    card = server.ask("GET", "/v1/models/org/second:v1", key=None)[2]
    assert (card["status"], card["max_model_len"]) == ("loaded", 256)


def _greedy(max_tokens):
    from inference_pio.core import SamplingParams

    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def test_unknown_names_and_no_name_are_refused(server):
    """With several models a request must name one; a name that is none loads nothing."""
    status, _, reply = complete(server, "three")
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    assert "there is smollm2-135m-instruct, one, org/second:v1" in reply["error"]["message"]
    status, _, reply = server.post("/v1/completions", {"prompt": "w5"}, key=None)
    assert (status, reply["error"]["code"]) == (400, "missing_parameter")
    assert states(server)["one"] == "unloaded"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "w5", "max_tokens": 1}),
        ("/tokenize", {"prompt": "w5"}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_every_endpoint_leases_its_model(start_server, folders, path, body):
    """Whatever becomes of the request, it loads the model, and gives it up at its end."""
    running = start_server(models=[spec(folders[0]), spec(folders[1])], preload="none", memory_budget=64 * MIB)
    wait_for(lambda: running.ask("GET", "/health", key=None)[0] == 200)
    status, _, reply = running.post(path, {"model": "two", **body}, key=None)
    assert status in {200, 400}, reply  # 400: it has no chat template
    assert states(running) == {"one": "unloaded", "two": "loaded"}
    wait_for(lambda: running.server.state.open == 0)
    assert running.server.state.models.find("two").leases == 0


def test_model_without_a_tokenizer_continues_tokens(start_server, tiny_model):
    """As its error for text says; what needs words is refused."""
    folder = tiny_model("wordless")
    (folder / "tokenizer.json").unlink()
    running = start_server(models=[spec(folder)])
    body = {"max_tokens": 2, "ignore_eos": True}
    status, _, reply = running.post("/v1/completions", {"prompt": [5, 6], **body}, key=None)
    assert (status, reply.get("usage", {}).get("completion_tokens")) == (200, 2), reply
    status, _, reply = running.post("/v1/completions", {"prompt": "w5", **body}, key=None)
    assert status == 400
    assert reply["error"]["message"] == "'wordless' has no tokenizer files (give token ids instead of text)"


def test_requests_at_once_wait_for_one_load(start_server, folders):
    """Streams too; one that goes away meanwhile is not waited for, and disturbs none of the others."""
    gate = threading.Event()
    running = start_server(models=[spec(folders[0], gate=gate)], preload="none", keep_alive_s=0.1)
    pool = running.server.state.models
    wait_for(lambda: running.ask("GET", "/health", key=None)[0] == 200)
    answers = []

    def ask(place):
        answers.append(complete(running, "one", stream=bool(place % 2)))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: running.server.state.open == 6)
    goer = socket.create_connection((running.host, running.port))
    body = json.dumps({"prompt": "w5", "max_tokens": 1}).encode()
    goer.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    wait_for(lambda: running.server.state.open == 7)
    assert running.ask("GET", "/health", key=None)[0] == 200
    goer.close()
    wait_for(lambda: running.server.state.open == 6)
    [model] = pool._models
    assert model.leases == 6
    gate.set()
    for thread in threads:
        thread.join(20)
    assert [status for status, _, _ in answers] == [200] * 6
    assert model.loads == 1
    wait_for(lambda: model.leases == 0)


def test_wait_for_a_model_takes_no_longer_than_a_request_may(start_server, folders):
    """503 with when to come back, and the load goes on."""
    from inference_pio.serve import Bounds

    gate = threading.Event()
    running = start_server(models=[spec(folders[0], gate=gate)], preload="none", bounds=Bounds(request_s=0.3))
    wait_for(lambda: running.ask("GET", "/health", key=None)[0] == 200)
    started = time.monotonic()
    status, headers, reply = complete(running, "one")
    assert 0.2 < time.monotonic() - started < 5
    assert (status, reply["error"]["code"]) == (503, "model_loading")
    assert int(headers["retry-after"]) >= 1
    gate.set()
    wait_for(lambda: states(running) == {"one": "loaded"})
    assert complete(running, "one")[0] == 200


def test_failed_load_is_told_without_paths(start_server, folders, tmp_path):
    """A file that was spoilt since the start: the reason, not where; once it is whole again, so is the model."""
    from shutil import copytree

    folder = copytree(folders[1], tmp_path / "two")
    running = start_server(models=[spec(folders[0]), spec(folder)], memory_budget=64 * MIB)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    for _ in range(2):
        status, headers, reply = complete(running, "two")
        assert (status, reply["error"]["code"]) == (503, "model_load_failed")
        assert reply["error"]["message"] == (
            "model 'two' could not be loaded: its files break the rules of their format"
        )
        assert 1 <= int(headers["retry-after"]) <= 5
    assert str(tmp_path) not in json.dumps(reply)
    assert states(running) == {"one": "loaded", "two": "failed"}
    assert running.ask("GET", "/health", key=None)[0] == 200
    assert complete(running, "one")[0] == 200
    weights.write_bytes(whole)
    running.server.state.models.find("two").retry_at = 0.0
    assert complete(running, "two")[0] == 200


def test_memory_comes_back(start_server, folders):
    """The real model, its cache written to, is unloaded for want of requests: the process is as small as before."""
    running = start_server(
        models=[spec(folders[0]), spec(REAL)], memory_budget=700 * MIB, unload_idle_s=0.5, keys=KeyRing()
    )
    process = psutil.Process()
    # The first time, what the process keeps for good is taken as well.
    running.post("/v1/completions", {"model": REAL, "prompt": "Hello", "max_tokens": 1}, key=None)
    wait_for(lambda: set(states(running).values()) == {"unloaded"})
    before = process.memory_info().rss
    assert complete(running, REAL, max_tokens=32)[0] == 200
    weights = running.server.state.models.find(REAL).served.llm.weight_bytes
    assert process.memory_info().rss - before > 0.9 * weights
    wait_for(lambda: set(states(running).values()) == {"unloaded"})
    assert process.memory_info().rss - before < 0.25 * weights
    assert running.server.state.models.used == 0


def test_models_take_turns_where_the_budget_holds_one(start_server, folders):
    """The counters go on over unloads, and say how often each was loaded; a model in use makes the other wait."""
    parser = pytest.importorskip("prometheus_client.parser", reason="Prometheus' parser is the oracle")
    budget = int(1.5 * _planned(folders[0]))
    # The cache takes half of what the weights leave, so that more than one and a half would not fit twice.
    running = start_server(models=[spec(folders[0]), spec(folders[1])], memory_budget=budget)
    for turn in range(4):
        assert complete(running, ("one", "two")[turn % 2])[0] == 200
        assert list(states(running).values()).count("loaded") == 1
    text = running.ask("GET", "/metrics", key=None)[2].decode()
    found = {
        (sample.name, sample.labels.get("model_name")): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert {name: found["pio:model_loads_total", name] for name in ("one", "two")} == {"one": 2, "two": 2}
    assert {name: found["pio:model_unloads_total", name] for name in ("one", "two")} == {"one": 2, "two": 1}
    assert {name: found["pio:model_loaded", name] for name in ("one", "two")} == {"one": 0, "two": 1}
    assert {name: found["pio:generation_tokens_total", name] for name in ("one", "two")} == {"one": 8, "two": 8}
    assert found["pio:model_memory_bytes", "one"] == 0 < found["pio:model_memory_bytes", "two"] <= budget
    assert found["pio:model_load_seconds_total", "one"] > 0
    connection = http.client.HTTPConnection(running.host, running.port, timeout=30)
    body = {"model": "two", "prompt": "w5", "max_tokens": 200, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    reply.readline()
    status, headers, refused = complete(running, "one")
    reply.read()
    connection.close()
    if status != 200:  # it may have ended in time
        assert (status, refused["error"]["code"], headers["retry-after"]) == (503, "memory_busy", "2")
    assert complete(running, "one")[0] == 200


def _planned(folder):
    return spec(folder).plan(2 * MIB).nbytes


def stream_of(running, path, body):
    """The raw reply to a request for a stream."""
    connection = http.client.HTTPConnection(running.host, running.port, timeout=30)
    connection.request("POST", path, json.dumps({**body, "stream": True}), {"content-type": "application/json"})
    return connection, connection.getresponse()


def test_streams_show_that_they_live_while_a_model_loads(start_server, folders):
    """Comments come before the first event; then the stream is as any other, and so is one that was quick."""
    gate = threading.Event()
    running = start_server(models=[spec(REAL), spec(folders[0], gate=gate)], memory_budget=700 * MIB, keep_alive_s=0.1)
    body = {"model": "one", "prompt": "w5", "max_tokens": 3, "ignore_eos": True, "temperature": 0}
    connection, reply = stream_of(running, "/v1/completions", body)
    assert reply.status == 200
    assert reply.getheader("content-type") == "text/event-stream; charset=utf-8"
    assert [reply.readline() for _ in range(4)] == [b": ping\n", b"\n"] * 2
    gate.set()
    rest = reply.read().replace(b": ping\n\n", b"")
    connection.close()
    connection, reply = stream_of(running, "/v1/completions", body)
    quick = reply.read()
    connection.close()
    assert texts_of(rest) == texts_of(quick)
    assert rest.endswith(b"data: [DONE]\n\n")


def texts_of(stream):
    events = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: {")]
    return [choice["text"] for event in events for choice in json.loads(event)["choices"]]


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/completions", {"prompt": "w5"}, b"data: [DONE]"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "w5"}]}, b"data: [DONE]"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "w5"}], "max_tokens": 3}, b"event: error"),
        ("/v1/responses", {"input": "w5"}, b""),
    ],
)
def test_stream_that_has_begun_is_told_of_a_failed_load(start_server, folders, tmp_path, path, body, last):
    """As an event, in the shape of the endpoint: the status was told long ago."""
    from shutil import copytree

    gate = threading.Event()
    folder = copytree(folders[1], tmp_path / "two")
    running = start_server(models=[spec(folders[0]), spec(folder, gate=gate)], memory_budget=64 * MIB, keep_alive_s=0.1)
    connection, reply = stream_of(running, path, {"model": "two", **body})
    assert reply.status == 200
    assert reply.readline() == b": ping\n"
    (folder / "model.safetensors").write_bytes(b"")
    gate.set()
    rest = reply.read()
    connection.close()
    lines = [line for line in rest.splitlines() if line and not line.startswith(b":")]
    [error] = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")]
    assert error["error"]["message"].startswith("model 'two' could not be loaded: its files break the rules")
    assert not last or last in lines
    wait_for(lambda: running.server.state.open == 0)
    assert running.server.state.models.find("two").leases == 0


def test_client_of_a_stream_may_go_away_while_its_model_loads(start_server, folders):
    """Its request ends at once."""
    gate = threading.Event()
    running = start_server(
        models=[spec(folders[0]), spec(folders[1], gate=gate)], memory_budget=64 * MIB, keep_alive_s=0.1
    )
    connection, reply = stream_of(running, "/v1/completions", {"model": "two", "prompt": "w5"})
    assert reply.readline() == b": ping\n"
    reply.close()
    connection.close()
    wait_for(lambda: running.server.state.open == 0)
    assert running.server.state.models.find("two").leases == 0
    gate.set()
    wait_for(lambda: states(running)["two"] == "loaded")
