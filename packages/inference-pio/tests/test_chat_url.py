"""``pio chat --url``: with a server of this project, and with one that says what a test tells it to."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

KEY = "a-key-of-the-tests"
RECITED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture(scope="module")
def recited(tiny_model, tmp_path_factory):
    """The address of a real server with the model that recites the alphabet, and its key."""
    pytest.importorskip("inference_pio.serve", reason="pio-serve is not installed")
    folder = tmp_path_factory.mktemp("server")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIO_")}
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(folder))
    command = ["-m", "inference_pio.cli", "serve", str(tiny_model), "--port", "0", "--threads", "1"]
    log = folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env={**environment, **homes, "PIO_SERVE_API_KEY": KEY},
        )
    deadline = time.monotonic() + 60
    while (found := re.search(r"serving reciter at (http://\S+)/v1", log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    yield found[1], KEY
    process.terminate()
    assert process.wait(20) == 0


class Scripted:
    """A server that answers each request with the next of ``replies``; the last one again and again.

    A reply is a status, headers and a body; a list of bytes is a stream of events, and None ends the connection.
    """

    def __init__(self) -> None:
        self.replies: list[tuple] = []
        self.models: tuple | None = (200, {}, {"data": [{"id": "one"}]})
        self.asked: list[dict] = []
        self.headers: list[dict] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: object) -> None: ...

            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                scripted.answer(self, scripted.models)

            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                body = self.rfile.read(int(self.headers["content-length"]))
                scripted.asked.append(json.loads(body))
                scripted.headers.append({name.lower(): value for name, value in self.headers.items()})
                replies = scripted.replies
                scripted.answer(self, replies.pop(0) if len(replies) > 1 else replies[0])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def answer(self, handler, reply) -> None:
        if reply is None:
            return
        status, headers, body = reply
        if isinstance(body, list):
            headers, body = {"content-type": "text/event-stream", **headers}, b"".join(body)
        else:
            headers, body = {"content-type": "application/json", **headers}, json.dumps(body).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def scripted():
    server = Scripted()
    yield server
    server.server.shutdown()
    server.server.server_close()
    server.thread.join(10)


def event(delta=None, finish_reason=None, **more) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
HELLO = [
    event({"role": "assistant", "content": ""}),
    event({"content": "Hel"}),
    b": a comment\n\n",
    event({"content": "lo"}),
    event({}, "stop"),
    event(usage=USAGE),
    DONE,
]


def test_a_server_of_ours_answers_as_the_model_does_here(pio, recited, tmp_path):
    """The same lines, the same figures but those of this process; the one model need not be named."""
    url, key = recited
    (tmp_path / "key").write_text(f"# mine\n\n{key}\n")
    lines = b'one\ntwo\n/set max_tokens 3\n/set system be brief\nthree\n/set stop ["B"]\nfour\n'
    options = ("--api-key-file", tmp_path / "key", "--json", "--max-tokens", "40", "--temperature", "0")
    done = pio("chat", "--url", url, *options, stdin=lines)
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["text"] for answer in answers] == [RECITED, RECITED, "ABC", "A"]
    assert [answer["finish_reason"] for answer in answers] == ["stop", "stop", "length", "stop"]
    assert answers[0]["model"] == "reciter"
    assert answers[0]["usage"] == {"prompt_tokens": 22, "completion_tokens": 27, "cached_tokens": 0}
    assert answers[1]["usage"]["prompt_tokens"] > 50
    assert answers[1]["usage"]["cached_tokens"] > 0
    assert answers[0]["timings"]["ttft_s"] > 0
    assert answers[0]["timings"]["decode_tokens_per_s"] > 0
    assert answers[0]["timings"]["peak_rss_bytes"] is None


def test_text_and_figures(pio, recited, monkeypatch):
    """The text on standard output, as it comes; the figures beside it."""
    url, key = recited
    monkeypatch.setenv("PIO_SERVE_API_KEY", key)
    done = pio("chat", "--url", f"{url}/v1/", "--stats", "-m", "reciter", "--temperature", "0", stdin=b"hello\n")
    assert (done.code, done.out) == (0, f"{RECITED}\n")
    assert "24 prompt tokens, 27 new (stop) | first token 0." in done.err
    assert f"tokens/s | reciter at {url}/v1\n" in done.err


def test_wrong_models_and_keys_of_a_real_server(pio, recited, monkeypatch):
    """The way out is named: what models there are, how to give a key."""
    url, key = recited
    done = pio("chat", "--url", url, stdin=b"hello\n")
    assert done.code == 1
    assert "(give the server's key by --api-key-file or PIO_SERVE_API_KEY)" in done.err
    monkeypatch.setenv("PIO_SERVE_API_KEY", "wrong-key-of-the-tests")
    done = pio("chat", "--url", url, "-m", "reciter", stdin=b"hello\n")
    assert done.code == 1
    assert "refuses the key: the API key is wrong (give" in done.err
    monkeypatch.setenv("PIO_SERVE_API_KEY", key)
    done = pio("chat", "--url", url, "-m", "recitor", stdin=b"hello\n")
    assert done.code == 3
    assert "has no model 'recitor' (it has reciter)" in done.err
    done = pio("chat", "--url", f"{url}/v2", "-m", "reciter", stdin=b"hello\n")
    assert done.code == 3
    assert "an API's address mostly ends in /v1" in done.err


def test_what_is_sent(pio, scripted, monkeypatch):
    """What was said, and the bound on tokens; the rest is left to the server. The turns before, and the key."""
    scripted.replies = [(200, {}, HELLO)]
    monkeypatch.setenv("PIO_SERVE_API_KEY", "k" * 20)
    flags = ("-s", "be brief", "--temperature", "0.5", "--stop", "x", "--set", "repetition_penalty=1.1")
    done = pio("chat", "--url", scripted.url, *flags, stdin=b"hi\n/set max_tokens none\nand\n")
    assert (done.code, done.out) == (0, "Hello\nHello\n"), done.err
    system = {"role": "system", "content": "be brief"}
    first, second = scripted.asked
    assert first == {
        "model": "one",
        "messages": [system, {"role": "user", "content": "hi"}],
        "max_tokens": 512,
        "temperature": 0.5,
        "stop": ["x"],
        "repetition_penalty": 1.1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "max_tokens" not in second
    turns = [("user", "hi"), ("assistant", "Hello"), ("user", "and")]
    assert second["messages"][1:] == [{"role": role, "content": text} for role, text in turns]
    assert {headers["authorization"] for headers in scripted.headers} == {"Bearer " + "k" * 20}


def test_parameters_are_checked_before_they_are_sent(pio, scripted):
    """As for a model here; /set shows what was said, and whose the rest is."""
    done = pio("chat", "--url", scripted.url, stdin=b"/set top_k 5\n/set\n/set temperature -1\n")
    assert done.code == 2
    assert "top_k = 5\n" in done.err
    assert "temperature = (the server's)\n" in done.err
    assert "temperature must be at least 0" in done.err
    assert scripted.asked == []


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_looks_as_the_model_writes_it(pio, scripted, name):
    """On the screen between its marks; not in what is remembered and sent back."""
    stream = [event({name: "Let me"}), event({name: " see."}), event({"content": "Yes."}), event({}, "stop"), DONE]
    scripted.replies = [(200, {}, stream)]
    done = pio("chat", "--url", scripted.url, stdin=b"hi\nand\n")
    assert done.out == "<think>\nLet me see.\n</think>\n\nYes.\n" * 2
    assert scripted.asked[1]["messages"][1] == {"role": "assistant", "content": "Yes."}


def test_reasoning_without_an_end(pio, scripted):
    """The mark is closed where the answer ends within it; figures that were not told are null."""
    scripted.replies = [(200, {}, [event({"reasoning_content": "Let me"}), event({}, "length"), DONE])]
    assert pio("chat", "--url", scripted.url, stdin=b"hi\n").out == "<think>\nLet me\n</think>\n"
    answer = pio("chat", "--url", scripted.url, "--json", stdin=b"hi\n").json
    assert (answer["text"], answer["finish_reason"]) == ("", "length")
    assert answer["usage"] == {"prompt_tokens": None, "completion_tokens": None, "cached_tokens": 0}
    assert "tokens were not told (length)" in pio("chat", "--url", scripted.url, "--stats", stdin=b"hi\n").err


def test_busy_server_is_asked_again(pio, scripted):
    """After the time that it says: a full queue and a model that loads are no reason to give up."""
    busy = {"error": {"message": "the queue is full"}}
    scripted.replies = [(429, {"retry-after": "1"}, busy), (503, {"retry-after": "0"}, busy), (200, {}, HELLO)]
    done = pio("chat", "--url", scripted.url, stdin=b"hi\n")
    assert (done.code, done.out) == (0, "Hello\n")
    assert done.err == "the server is busy or still loads its model; asking again in 1 s\n" * 2
    scripted.replies = [(503, {"retry-after": "1"}, busy), (200, {}, HELLO)]
    assert pio("chat", "--url", scripted.url, "--quiet", stdin=b"hi\n").err == ""


@pytest.mark.parametrize("headers", [{"retry-after": "86400"}, {"retry-after": "Fri, 31 Dec 2027 23:59:59 GMT"}, {}])
def test_nobody_waits_for_a_day(pio, scripted, headers):
    """Nor where it was not said for how long."""
    scripted.replies = [(429, headers, {"error": {"message": "too many tokens"}})]
    done = pio("chat", "--url", scripted.url, stdin=b"hi\n")
    assert (done.code, len(scripted.asked)) == (1, 1)
    assert "/v1: too many tokens (" in done.err
    assert headers.get("retry-after", "try again later")[:20] in done.err


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        (
            (400, {}, {"error": {"message": "the prompt\nis too long"}}),
            2,
            "refuses the request: the prompt is too long",
        ),
        ((404, {}, {"detail": "Not Found"}), 3, "/v1: Not Found (an API's address mostly ends in /v1)"),
        ((500, {}, "no object"), 1, "failed with 500: Internal Server Error (look at the server's log)"),
        ((302, {"location": "http://elsewhere/"}, {}), 1, "sends on to http://elsewhere/, where nothing is sent"),
        ((200, {}, {"choices": []}), 1, "answers with 'application/json' instead of a stream of events"),
        ((200, {}, [b"data: {\n\n"]), 1, "sends an event that is no JSON object: '{'"),
        ((200, {}, [event({"content": "a"})]), 1, "the server broke off within the answer"),
        ((200, {}, [event(error={"message": "boom"}), DONE]), 1, "the server failed within the answer: boom"),
        (None, 1, "ended the connection: Remote end closed connection"),
    ],
)
def test_what_servers_do_wrong(pio, scripted, reply, code, message):
    """One line with the server's own words and the way out; what had come before stays."""
    scripted.replies = [reply]
    done = pio("chat", "--url", scripted.url, stdin=b"hi\n")
    assert (done.code, done.out) == (code, "a\n" if "broke off" in message else "")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((200, {}, {"data": [{"id": "one"}, {"id": "two"}]}), "has 2 models (choose by --model: one, two)"),
        ((200, {}, {"data": []}), "does not say which models it has (name one by --model)"),
        ((404, {}, {}), "does not say which models it has (name one by --model)"),
    ],
)
def test_the_model_must_be_clear(pio, scripted, models, message):
    """Nobody is asked by chance."""
    scripted.models = models
    done = pio("chat", "--url", scripted.url, stdin=b"hi\n")
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((200, {}, [b"no JSON"]), "/v1/models is not JSON"),
        ((500, {}, {}), "failed with 500: Internal Server Error"),
    ],
)
def test_lists_of_models_that_cannot_be_read(pio, scripted, models, message):
    """One line, as for answers."""
    scripted.models = models
    done = pio("chat", "--url", scripted.url, stdin=b"hi\n")
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--url", "http://192.0.2.1"), "the API key would go to 192.0.2.1 unencrypted (give an https URL, unset the"),
        (("--url", "http://127.0.0.1.example"), "the API key would go to 127.0.0.1.example unencrypted"),
        (("--url", "ftp://127.0.0.1"), "is not the address of a server (such as http://127.0.0.1:8000 or"),
        (("--url", "127.0.0.1:8000"), "is not the address of a server"),
        (("--url", "http://127.0.0.1:99999"), "is not the address of a server: Port out of range"),
        (("--url", "http://a..b"), "is not the address of a server: "),
        (("--url", "http://b\u00fccher.example/v1"), "is not the address of a server"),
        (("--url", "http://127.0.0.1/v1?key=a"), "is not the address of a server"),
        (("--url", "http://127.0.0.1/\r\nx: y"), "is not the address of a server"),
        (("--url", "http://me:secret@127.0.0.1"), "--url must not hold a user or a password (give the key by"),
        (("--url", "http://127.0.0.1:1", "--threads", "2"), "threads is about a model in this process"),
        (("--url", "http://127.0.0.1:1", "--set", "kv_cache_dtype=int8"), "kv_cache_dtype is about a model in this"),
        (("--api-key-file", "x"), "--api-key-file is about a server, and there is no --url"),
        (("--plain-key",), "--plain-key is about a server, and there is no --url"),
        (("--url", "http://127.0.0.1:1", "--api-key-file", "none"), "--api-key-file none: No such file or directory"),
    ],
)
def test_wrong_options(pio, monkeypatch, arguments, message):
    """Exit code 2, before anything is sent; no secret is repeated."""
    monkeypatch.setenv("PIO_SERVE_API_KEY", "k" * 20)
    done = pio("chat", *arguments, stdin=b"hi\n")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "secret" not in done.err
    assert "kkk" not in done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "there is no key in it"), ("zwei words", "characters that no key has"), (b"\xff", "UTF-8")],
)
def test_wrong_key_files(pio, tmp_path, content, message):
    """The message names the file and not what is in it."""
    file = tmp_path / "key"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = pio("chat", "--url", "http://127.0.0.1:1", "--api-key-file", file, stdin=b"hi\n")
    assert done.code == 2
    assert f"{file}: " in done.err
    assert message in done.err
    assert "zwei " not in done.err


def test_key_goes_unencrypted_only_where_it_is_said(monkeypatch):
    """This machine is no journey; a name may be anyone's."""
    from inference_pio.cli._endpoint import endpoint_of
    from inference_pio.interfaces import InvalidRequestError

    for url in ("http://127.0.0.1:1", "http://localhost", "http://[::1]:1", "https://example.org"):
        assert endpoint_of(url, "key", plain_key=False).key == "key"
    assert endpoint_of("http://192.0.2.1", None, plain_key=False).url == "http://192.0.2.1/v1"
    assert endpoint_of("http://192.0.2.1/x/", "key", plain_key=True).url == "http://192.0.2.1/x"
    for url in ("http://192.0.2.1", "http://0.0.0.0", "http://localhost.example.org"):
        with pytest.raises(InvalidRequestError, match="unencrypted"):
            endpoint_of(url, "key", plain_key=False)
    assert "key" not in repr(endpoint_of("https://example.org", "key-of-mine", plain_key=False)).replace("key_", "")


def test_nobody_there(pio):
    """A refused connection, a name that there is not, and a port that speaks something else."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        done = pio("chat", "--url", f"http://127.0.0.1:{port}", stdin=b"hi\n")  # no one else can have it meanwhile
    assert done.code == 1
    assert f"no server listens at http://127.0.0.1:{port}/v1 (start one, such as pio serve" in done.err
    done = pio("chat", "--url", "http://no-such-host.invalid", stdin=b"hi\n")
    assert "there is no host 'no-such-host.invalid'" in done.err


def test_proxies_are_not_asked_about_this_machine(pio, scripted, monkeypatch):
    """They would see the key."""
    scripted.replies = [(200, {}, HELLO)]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert pio("chat", "--url", scripted.url, stdin=b"hi\n").out == "Hello\n"


def test_tls(pio, scripted, tmp_path, monkeypatch):
    """A certificate that nobody here trusts is refused; one that SSL_CERT_FILE vouches for is taken."""
    trustme = pytest.importorskip("trustme", reason="trustme makes the certificates")
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    plain = pio("chat", "--url", f"https://127.0.0.1:{scripted.port}", stdin=b"hi\n")
    assert "no TLS connection to 127.0.0.1: " in plain.err
    assert "(a server without TLS has an http URL)" in plain.err
    scripted.replies = [(200, {}, HELLO)]
    scripted.server.socket = context.wrap_socket(scripted.server.socket, server_side=True)
    url = f"https://127.0.0.1:{scripted.port}"
    monkeypatch.setattr(scripted.server, "handle_error", lambda *_: None)  # the handshake that the client breaks off
    done = pio("chat", "--url", url, stdin=b"hi\n")
    assert done.code == 1
    assert "the certificate of 127.0.0.1 cannot be trusted" in done.err
    assert "SSL_CERT_FILE" in done.err
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    assert pio("chat", "--url", url, stdin=b"hi\n").out == "Hello\n"


def test_ctrl_c_stops_the_answer_and_not_the_program(recited):
    """Whether it has begun or not; the server hears of it, and the conversation goes on."""
    pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")
    url, key = recited
    flags = ("--max-tokens", "none", "--set", "ignore_eos=true", "--temperature", "0")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "inference_pio.cli", "chat", "--url", url, *flags],
        env={**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null", "PIO_SERVE_API_KEY": key},
        encoding="utf-8",
        timeout=60,
    )
    child.expect("reciter; /help for help, Ctrl-D to leave")
    child.expect(">>> ")
    child.sendline("hello")
    child.expect(RECITED + RECITED)
    child.sendintr()
    child.expect(">>> ")
    child.sendline("/set max_tokens 4")
    child.expect("max_tokens = 4")
    child.expect(">>> ")
    child.sendline("more")
    child.expect("ABCD\r\n")
    child.expect(">>> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_ctrl_c_before_the_first_token(scripted):
    """Nothing is waited for: a server that says nothing does not hold the program."""
    pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")
    asked, go_on = threading.Event(), threading.Event()

    def stall(handler, reply) -> None:
        if reply == "stall":
            asked.set()
            go_on.wait(30)
        else:
            Scripted.answer(scripted, handler, reply)

    scripted.answer = stall
    scripted.replies = ["stall", (200, {}, HELLO)]
    child = pexpect.spawn(
        sys.executable,
        ["-m", "inference_pio.cli", "chat", "--url", scripted.url],
        env={**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"},
        encoding="utf-8",
        timeout=30,
    )
    child.expect(">>> ")
    child.sendline("hello")
    assert asked.wait(20)
    child.sendintr()
    child.expect(r"\(Ctrl-C again, Ctrl-D or /exit leaves\)")
    child.expect(">>> ")
    child.sendline("hello")
    child.expect("Hello\r\n")
    child.expect(">>> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    go_on.set()
    assert child.exitstatus == 0
