"""The admin socket: who may open it, what it does, and that nothing of it answers over TCP."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from inference_pio.core import LLM
from inference_pio.interfaces import ConfigError, InvalidRequestError, ModelNotFoundError
from inference_pio.serve import KeyRing
from inference_pio.serve._admin.api import ADMIN_ROUTES
from inference_pio.serve._admin.client import AdminClient, AdminError
from inference_pio.serve._admin.command import admin
from inference_pio.serve._admin.listener import bind_private
from inference_pio.serve._keys import read_key_file
from inference_pio.serve._models.spec import ModelSpec, PlannedModel
from inference_pio.serve._routes import ROUTES

KEY = "key-of-the-admin-test"
PROMPT = "w7 w8 w9 xyzzy"

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets")


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Relative, for the system bounds the length of such paths."""
    monkeypatch.chdir(tmp_path)
    return Path("admin.sock")


@pytest.fixture(scope="module")
def specs(tiny_model):
    """Two models with drawn weights; ``first`` has a long context, for requests that last."""

    def spec(name, **sizes):
        folder = tiny_model(name, **sizes)

        def load():
            return LLM(folder, executor="native", threads=1, max_num_seqs=2, packed_cache_bytes=0)

        return ModelSpec(label=name, plan=lambda _: PlannedModel(name, 0, load))

    return [spec("first", context=16384), spec("second")]


@pytest.fixture
def server(start_server, specs, path, tmp_path):
    """One model is loaded and one is not; keys from a file."""
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    return start_server(
        models=specs,
        admin_socket=path,
        keys=KeyRing(read_key_file(keys)),
        read_keys=lambda: KeyRing(read_key_file(keys)),
        memory_budget=900 * 2**20,
    )


@pytest.fixture
def client(server, path):
    return AdminClient(path, 20)


@pytest.fixture
def long_request(server):
    """A stream that goes on, as ``request-1``; gives what has come of it once it has ended."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    body = {"model": "first", "prompt": PROMPT, "max_tokens": 16000, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "x-request-id": "request-1"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    assert reply.status == 200
    reply.readline()
    yield reply
    reply.close()
    connection.close()


def run(path, *arguments, code=0):
    """Standard output of ``pio admin``, or the error that it ends with."""
    result = CliRunner().invoke(admin, [*arguments, *(["--socket", str(path)] if path else [])])
    if code:
        return result.exception
    assert result.exit_code == 0, result.exception
    return result.stdout


def test_no_admin_route_answers_over_tcp(server):
    """With the right key and without one, by every method: nothing is there, and nothing happens."""
    paths = sorted({re.sub(r"\{[^}]*\}", "first", route.path) for route in ADMIN_ROUTES})
    assert len(paths) == len(ADMIN_ROUTES)
    for prefix in ("", "/admin", "/v1"):
        for path in paths:
            if prefix + path in {"/v1/models"}:
                continue  # the public list
            for method in ("GET", "POST", "DELETE"):
                status, _, reply = server.ask(method, prefix + path, "{}" if method == "POST" else None, key=KEY)
                served = method == "GET" and prefix == "/v1" and path.startswith("/models/")
                assert (status, reply["error"]["code"]) == (
                    (404, "model_not_found") if served else (405, "method_not_allowed")
                    if prefix == "/v1" and path.startswith("/models/") else (404, "not_found")
                ), (method, prefix + path)  # fmt: skip
                assert server.ask(method, prefix + path, key=None)[0] == 401
    assert not server.server.state.draining
    assert not {route.path for route in ADMIN_ROUTES} & {route.path for route in ROUTES}


def test_socket_is_for_its_user_alone(server, path):
    """From the moment that it is there; and it goes with the server."""
    mode = path.lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert [entry.name for entry in path.resolve().parent.iterdir() if entry.name.startswith(".pio-")] == []
    server.server.drain()
    server.thread.join(20)
    assert not path.exists()


def test_socket_never_has_another_mode(path, monkeypatch):
    """Nobody else could enter the folder in which it is bound, whatever the umask."""
    seen = []
    real = socket.socket.bind

    def bind(self, address):
        real(self, address)
        seen.append((stat.S_IMODE(Path(address).parent.stat().st_mode), path.exists()))

    monkeypatch.setattr(socket.socket, "bind", bind)
    before = os.umask(0)
    try:
        bind_private(path).close()
    finally:
        os.umask(before)
    assert seen == [(0o700, False)]
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_socket_of_a_server_that_was_killed_gives_way(path):
    """One that nobody listens at; not one of a server that runs, nor anything else that is there."""
    first = bind_private(path)
    with pytest.raises(ConfigError, match=r"a server listens at .* already"):
        bind_private(path)
    first.close()
    bind_private(path).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is there, and is no socket"):
        bind_private(path)
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="is there, and is no socket"):
        bind_private(path)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be made: No such file or directory"):
        bind_private(path.parent / "no" / "folder")
    with pytest.raises(ConfigError, match="more than 90 bytes"):
        bind_private(path.parent / ("x" * 100))


def test_server_does_not_begin_where_its_socket_cannot_be(start_server, path):
    """With the reason, and without loading anything."""
    path.write_text("precious")
    running = start_server(admin_socket=path)
    running.thread.join(10)
    assert isinstance(running.server.failure, ConfigError)
    assert not running.server.state.models.named()
    assert path.read_text() == "precious"


def test_shows_models_and_moves_them(server, client):
    """Loaded and unloaded when asked to, as often as asked."""
    first = {model["id"]: model for model in client.get("models")["data"]}
    assert (first["first"]["state"], first["second"]["state"]) == ("loaded", "unloaded")
    assert first["first"]["memory_bytes"] > 2**20
    assert first["second"]["last_used"] is None
    loaded = client.post("models", "second", "load")
    assert (loaded["state"], loaded["open_requests"], loaded["loads"]) == ("loaded", 0, 1)
    assert client.post("models", "second", "load")["loads"] == 1
    whole = client.get("models")
    assert whole["memory_bytes"] == sum(model["memory_bytes"] for model in whole["data"])
    assert whole["memory_budget"] == 900 * 2**20
    for _ in range(2):
        unloaded = client.post("models", "second", "unload")
        assert (unloaded["state"], unloaded["memory_bytes"], unloaded["unloads"]) == ("unloaded", 0, 1)
    with pytest.raises(ModelNotFoundError, match="there is no model 'none'; there is first, second"):
        client.post("models", "none", "load")
    with pytest.raises(InvalidRequestError, match="the query may hold 'wait'"):
        client.post("models", "second", "unload", query="force")


def test_model_in_use_is_unloaded_after_its_requests(server, client, path, long_request):
    """409 without waiting; with it, once they have ended: never under one."""
    with pytest.raises(AdminError, match="model 'first' has 1 open request"):
        client.post("models", "first", "unload")
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(client.post("models", "first", "unload", query="wait")))
    waiting.start()
    time.sleep(0.1)
    assert not answers
    client.post("requests", "request-1", "cancel")
    waiting.join(10)
    assert answers[0]["state"] == "unloaded"


def test_shows_requests_and_cancels_them(server, client, long_request):
    """Ids, ages and tokens, nothing of what is in them; who waits for an answer is told what happened."""
    deadline = time.monotonic() + 10
    while not (found := client.get("requests"))["data"][0]["completion_tokens"]:
        assert time.monotonic() < deadline
    [request] = found["data"]
    assert request["id"] == "request-1"
    assert (request["path"], request["model"]) == ("/v1/completions", "first")
    assert request["prompt_tokens"] == 4
    assert request["age_s"] > 0
    assert request["key"] == KeyRing([KEY]).key_id(KEY.encode())
    assert "xyzzy" not in json.dumps(found)
    assert KEY not in json.dumps(found)
    assert client.post("requests", "request-1", "cancel") == {"cancelled": 1}
    said = long_request.read().decode()
    events = [line for line in said.splitlines() if line.startswith("data: ")]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "cancelled"
    assert events[-1] == "data: [DONE]"
    server.wait_until_idle()
    assert client.get("requests") == {"data": []}
    with pytest.raises(ModelNotFoundError, match="there is no open request 'request-1'"):
        client.post("requests", "request-1", "cancel")


def test_cancelled_request_is_not_tried_again(server, client):
    """One that waits for its whole answer gets 400."""
    answers = []
    body = {"model": "first", "prompt": PROMPT, "max_tokens": 16000, "ignore_eos": True}
    asking = threading.Thread(
        target=lambda: answers.append(
            server.post("/v1/completions", body, key=KEY, headers={"x-request-id": "request-2"})
        )
    )
    asking.start()
    deadline = time.monotonic() + 10
    while not client.get("requests")["data"]:
        assert time.monotonic() < deadline
    client.post("requests", "request-2", "cancel")
    asking.join(10)
    [(status, headers, reply)] = answers
    assert (status, reply["error"]["code"]) == (400, "cancelled")
    assert headers["x-request-id"] == "request-2"
    server.wait_until_idle()


def test_keys_are_read_anew(server, client, tmp_path):
    """A key that is gone opens nothing, a new one does; a file that is spoilt changes nothing."""
    keys = tmp_path / "keys"
    keys.write_text("another-key-12\nand-a-third-12\n")
    assert server.ask("GET", "/version", key=KEY)[0] == 200
    assert client.post("keys", "reload") == {"keys": 2}
    assert server.ask("GET", "/version", key=KEY)[0] == 401
    assert server.ask("GET", "/version", key="another-key-12")[0] == 200
    for spoilt in ("", "short\n"):
        keys.write_text(spoilt)
        with pytest.raises(InvalidRequestError, match="the keys are as they were"):
            client.post("keys", "reload")
    assert server.ask("GET", "/version", key="and-a-third-12")[0] == 200


def test_keys_of_the_environment_cannot_change(start_server, specs, path):
    """409: there is no file."""
    start_server(models=specs, admin_socket=path, keys=KeyRing([KEY]))
    with pytest.raises(AdminError, match="started without a key file"):
        AdminClient(path, 10).post("keys", "reload")


def test_settings_are_told_without_secrets(server, client):
    """How many keys there are; neither them nor their hashes."""
    found = client.get("settings")
    assert found["keys"] == 1
    assert found["host"] == "127.0.0.1"
    assert found["bounds"]["request_s"] == 300.0
    said = json.dumps(found)
    assert KEY not in said
    assert KeyRing([KEY]).key_id(KEY.encode()) not in said


def test_drains(server, client, long_request):
    """As a signal would: the running request ends whole, and then the server."""
    assert client.post("drain") == {"open_requests": 1}
    body = {"model": "first", "prompt": "a", "max_tokens": 1}
    assert server.post("/v1/completions", body, key=KEY)[2]["error"]["code"] == "stopping"
    client.post("requests", "request-1", "cancel")
    server.thread.join(20)
    assert not server.thread.is_alive()


def test_command_shows_people_and_programs(server, path, long_request):
    """Tables and JSON; mistakes end with their own errors."""
    lines = run(path, "models").splitlines()
    assert lines[0].split() == ["MODEL", "STATE", "MEMORY", "OPEN", "IDLE", "LOADS"]
    assert lines[1].split()[:2] == ["first", "loaded"]
    assert lines[2].split() == ["second", "unloaded", "-", "0", "-", "0"]
    assert json.loads(run(path, "load", "second", "--json"))["state"] == "loaded"
    run(path, "unload", "second")
    assert [model["state"] for model in json.loads(run(path, "models", "--json"))["data"]] == ["loaded", "unloaded"]
    assert "request-1" in run(path, "requests")
    assert json.loads(run(path, "requests", "--json"))["data"][0]["id"] == "request-1"
    assert 'host                    "127.0.0.1"' in run(path, "settings")
    assert json.loads(run(path, "settings", "--json"))["keys"] == 1
    assert json.loads(run(path, "reload-keys", "--json")) == {"keys": 1}
    assert isinstance(run(path, "unload", "first", code=1), AdminError)
    assert isinstance(run(path, "load", "none", code=1), ModelNotFoundError)
    run(path, "cancel", "request-1")
    run(path, "unload", "first", "--wait")
    run(path, "drain")


def test_command_needs_a_server(tmp_path, monkeypatch, path):
    """The path may come from the environment; what does not answer as a server is told so."""
    monkeypatch.delenv("PIO_SERVE_ADMIN_SOCKET", raising=False)
    with pytest.raises(InvalidRequestError, match="no admin socket was given"):
        raise run(None, "models", code=1)
    monkeypatch.setenv("PIO_SERVE_ADMIN_SOCKET", str(path))
    with pytest.raises(AdminError, match="no server listens at"):
        raise run(None, "models", code=1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer():
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(AdminError, match="answered 200 without JSON"):
        raise run(None, "models", code=1)
    listener.close()
