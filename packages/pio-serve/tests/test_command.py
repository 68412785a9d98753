"""``pio serve`` as a process: its lines, its keys, its signals."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from inference_pio.interfaces import ModelNotFoundError
from inference_pio.serve import PioServer, ServeSettings


def test_serves_and_drains(start_process):
    """Says where it is; on SIGTERM the running answer ends whole, new ones get 503, and the exit code is 0."""
    process = start_process("smollm2-135m-instruct", "--threads", "1")
    line = process.wait_for("serving")
    assert re.search(r"serving smollm2-135m-instruct at http://127\.0\.0\.1:\d+/v1 \(.*1 API key;", line)
    assert process.key not in line
    answers = []
    running = threading.Thread(target=lambda: answers.append(process.chat(300)))
    running.start()
    process.wait_for_running(1)
    process.process.send_signal(signal.SIGTERM)
    while process.ask("GET", "/health")[0] != 503:
        time.sleep(0.01)
    assert process.ask("GET", "/livez")[0] == 200
    status, reply = process.chat(300)
    assert status == 503
    assert reply["error"]["code"] == "stopping"
    running.join(30)
    [(status, reply)] = answers
    assert status == 200
    assert reply["usage"]["completion_tokens"] == 300
    assert process.process.wait(10) == 0


def test_drain_is_bounded(start_process):
    """An answer that does not end in time is ended with an error, and so is the process."""
    process = start_process("--threads", "1", "--drain-timeout", "0.5")
    process.wait_for("serving")
    answers = []
    running = threading.Thread(target=lambda: answers.append(process.chat(4000)))
    running.start()
    process.wait_for_running(1)
    started = time.monotonic()
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(15) == 0
    assert time.monotonic() - started < 10
    running.join(10)
    assert answers[0][0] == 503


def test_refuses_an_open_address_without_a_key(start_process):
    """Before anything is loaded."""
    process = start_process("--host", "0.0.0.0", PIO_SERVE_API_KEY="")  # noqa: S104 - refused
    process.wait_for("no API key is set")
    assert process.process.wait(10) == 2


def test_reads_keys_from_a_file(start_process, tmp_path):
    """As from the environment; both count."""
    file = tmp_path / "keys"
    file.write_text("# two keys\nsome-key-1\nanother-key-1\n")
    process = start_process("--api-key-file", str(file), "--threads", "1", PIO_SERVE_API_KEY="third-key-1")
    process.key = "another-key-1"
    assert "3 API keys" in process.wait_for("serving")
    assert process.ask("GET", "/v1/models")[0] == 200


def test_is_503_while_loading(load_model):
    """Connections are taken at once; what needs the model is told to come back, what does not is answered."""
    go_on, ready, listening = threading.Event(), threading.Event(), threading.Event()

    def load():
        assert go_on.wait(30)
        return load_model()

    server = PioServer(
        ServeSettings(port=0), "a-model", load, on_listening=lambda _: listening.set(), on_ready=lambda *_: ready.set()
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(10)
    port = int(server.address.rpartition(":")[2])

    def ask(method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, body, {"content-type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        connection.close()
        return reply.status, reply.getheader("retry-after")

    chat = '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}'
    assert ask("GET", "/livez") == (200, None)
    assert ask("GET", "/health") == (503, "2")
    assert ask("POST", "/v1/chat/completions", chat) == (503, "2")
    go_on.set()
    assert ready.wait(30)
    assert ask("GET", "/health") == (200, None)
    assert ask("POST", "/v1/chat/completions", chat) == (200, None)
    server.drain()
    thread.join(20)
    assert not thread.is_alive()


def test_model_that_cannot_be_loaded_ends_the_server():
    """With the reason that loading gave."""
    from inference_pio.serve import serve

    def load():
        raise ModelNotFoundError("no model 'x'")

    with pytest.raises(ModelNotFoundError, match="no model 'x'"):
        serve(PioServer(ServeSettings(port=0), "x", load))


def test_serves_without_torch():
    """Loading the app and everything it answers with imports no torch."""
    code = (
        "import sys, inference_pio.serve, inference_pio.serve._command\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
