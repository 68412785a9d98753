"""A server that answers as it is told, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field

import pytest

from inference_pio.benchmarks._quiet import Activity
from inference_pio.benchmarks._serve_timeline import Timeline


@dataclass
class Asked:
    """A request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict | None


@dataclass
class FakeServer:
    """Listens on a loopback port; ``answer`` is called with each request and yields seconds to wait and bytes to send.

    Ending the answer with None closes the connection.
    """

    answer: object = None
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        ready = threading.Event()

        async def main():
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stop.wait()
            server.close()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()))
        self._thread.start()
        assert ready.wait(10)
        return self

    def stop(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.asked.append(Asked(method, path, headers, json.loads(body) if body else None))
                for step in self.answer(self.asked[-1]):
                    if step is None:
                        return
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    else:
                        await asyncio.sleep(step)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away, which tests do on purpose
        finally:
            writer.close()


class Wire:
    """Bytes of replies."""

    @staticmethod
    def plain(value, status="200 OK", headers=""):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body

    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    end = b"0\r\n\r\n"

    @staticmethod
    def chunk(data):
        return b"%x\r\n%b\r\n" % (len(data), data)

    @classmethod
    def event(cls, value):
        text = value if isinstance(value, str) else json.dumps(value)
        return cls.chunk(f"data: {text}\n\n".encode())

    @staticmethod
    def text(text, finish=None):
        return {
            "id": "x",
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}],
            "usage": None,
        }

    @staticmethod
    def delta(finish=None, **delta):
        return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}

    @staticmethod
    def usage(prompt, completion):
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {"id": "x", "choices": [], "usage": counts}


@pytest.fixture
def wire():
    """Makes the bytes of replies."""
    return Wire


@pytest.fixture
def serving():
    """Starts servers that answer by a function, and stops them."""
    started = []

    def start(answer):
        started.append(FakeServer(answer).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def model_server(serving, wire):
    """A server of one model: a prompt counts two tokens besides its words, an answer has ``max_tokens`` chunks."""

    def answer(asked):
        if asked.path == "/v1/models":
            yield wire.plain({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
            return
        chat = asked.path == "/v1/chat/completions"
        body = asked.body
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        count = body["max_completion_tokens" if chat else "max_tokens"]
        yield wire.head
        if chat:
            yield wire.event(wire.delta(role="assistant", content=""))
        for number in range(count):
            finish = "length" if number == count - 1 else None
            yield wire.event(wire.delta(finish, content=" w") if chat else wire.text(" w", finish))
        yield wire.chunk(b": ping\n\n")
        yield wire.event(wire.usage(len(text.split()) + 2, count)) + wire.event("[DONE]") + wire.end

    return serving(answer)


@pytest.fixture
def timeline():
    """Makes a completed request from its times."""

    def make(start, *chunks, tokens=None, prompt_tokens=10, **more):
        made = Timeline(
            due=more.pop("due", start), start=start, prompt_tokens=prompt_tokens, output_tokens=tokens, **more
        )
        for at in chunks:
            made.note_chunk(at, text=True)
        if made.state == "running":
            made.state = "completed"
        return made

    return make


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Nobody waits a second to see what else the machine does, and nobody's key is sent."""
    monkeypatch.setattr("inference_pio.benchmarks._serve_run.check_quiet", lambda **_: Activity(0.0, 0.0, 2, ()))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
