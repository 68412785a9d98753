"""The application for other servers: its models come and go with the server's life."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from inference_pio.core import LLM
from inference_pio.interfaces import MissingDependencyError, ModelNotFoundError
from inference_pio.serve import KeyRing, ServeSettings, ray
from inference_pio.serve._lifespan import LifespanApp
from inference_pio.serve._models.spec import spec_of

KEY = "key-of-the-app"


async def ask(app, path, body=b"", key=KEY):
    """Status, and the body as JSON."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if key is not None:
        headers.append((b"authorization", b"Bearer " + key.encode()))

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST" if body else "GET", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": headers,
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


async def begin(app):
    """The task of its life, what it was told, and what it said."""
    told: asyncio.Queue = asyncio.Queue()
    said: asyncio.Queue = asyncio.Queue()
    life = asyncio.ensure_future(app({"type": "lifespan"}, told.get, said.put))
    await told.put({"type": "lifespan.startup"})
    return life, told, said


def app_of(load):
    return LifespanApp(ServeSettings(keys=KeyRing([KEY])), [spec_of("model", load)])


def test_lives_with_its_server():
    """Loads at the start, answers behind its layers, and refuses once it is stopped."""

    async def run():
        app = app_of(partial(LLM, "smollm2-135m-instruct", max_model_len=256, max_num_seqs=2, threads=1))
        life, told, said = await begin(app)
        assert await said.get() == {"type": "lifespan.startup.complete"}
        chat = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}).encode()
        status, reply = await ask(app, "/v1/chat/completions", chat)
        assert (status, reply["usage"]["completion_tokens"]) == (200, 3)
        assert (await ask(app, "/v1/models", key=None))[0] == 401
        assert (await ask(app, "/health"))[0] == 200
        await told.put({"type": "lifespan.shutdown"})
        assert await said.get() == {"type": "lifespan.shutdown.complete"}
        await life
        status, reply = await ask(app, "/v1/chat/completions", chat)
        assert (status, reply["error"]["code"]) == (503, "stopping")

    asyncio.run(run())


def test_says_why_it_cannot_start():
    """To its server, in one line."""

    def load():
        raise ModelNotFoundError("no model 'x'", hint="look again")

    async def run():
        life, _, said = await begin(app_of(load))
        found = await said.get()
        assert found["type"] == "lifespan.startup.failed"
        assert "no model 'x'" in found["message"]
        await life

    asyncio.run(run())


def test_needs_a_life():
    """A server without the lifespan protocol is told so, rather than that there are no models."""
    with pytest.raises(RuntimeError, match="lifespan protocol"):
        asyncio.run(ask(app_of(None), "/health"))


def test_ray_that_is_not_installed(monkeypatch):
    """Is named, with what installs it; the module itself imports without it."""
    monkeypatch.setattr(ray, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pio-serve\[ray\]'"):
        ray.build_deployment("smollm2-135m-instruct")
