"""Encrypted connections: clients over them, files that cannot be, and handshakes that never end."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from typing import NamedTuple

import openai
import psutil
import pytest

from inference_pio.interfaces import ConfigError
from inference_pio.serve import Bounds, PioServer, ServeSettings
from inference_pio.serve._tls import tls_context

trustme = pytest.importorskip("trustme", reason="it makes the certificates, in the group 'test'")
httpx2 = pytest.importorskip("httpx2", reason="the HTTP client of the package openai")

NOW = dt.datetime.now(tz=dt.UTC)
DAY = dt.timedelta(days=1)


class Address(NamedTuple):
    """Of a server in another process."""

    host: str
    port: int


def write(folder, leaf):
    """Certificate with its chain, and key that no one else may read."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    key.chmod(0o600)
    return cert, key


def read_end(sock):
    """What comes until the other side ends it, politely or not."""
    parts = []
    try:
        while part := sock.recv(1024):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connections_of(running):
    """What this process has open of a server's connections, on either side; other servers' are no matter of it."""
    return [
        connection
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and running.port in (connection.laddr.port, connection.raddr.port)
    ]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    return write(tmp_path_factory.mktemp("tls"), authority.issue_cert("localhost", "127.0.0.1"))


@pytest.fixture
def encrypted(start_server, files):
    """A server over https, with short bounds."""
    return start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(header_s=1.0))


@pytest.fixture
def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_openai_client_over_https(encrypted, trusting):
    """Whole and streamed, with the certificate verified; without trust in its authority it is refused."""
    assert encrypted.url.startswith("https://127.0.0.1:")
    asked = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Name the capital of France."}],
        "temperature": 0,
        "max_tokens": 16,
    }
    how = {"base_url": f"{encrypted.url}/v1", "api_key": "none", "max_retries": 0}
    with openai.OpenAI(**how, http_client=httpx2.Client(verify=trusting)) as client:
        whole = client.chat.completions.create(**asked).choices[0].message.content
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "Paris" in whole
    assert whole == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with openai.OpenAI(**how) as client, pytest.raises(openai.APIConnectionError) as caught:
        client.chat.completions.create(**asked)
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("version", "spoken"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_speaks_what_is_safe(encrypted, trusting, version, spoken):
    """TLS 1.2 and 1.3, HTTP/1.1 inside."""
    trusting.maximum_version = trusting.minimum_version = version
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((encrypted.host, encrypted.port), timeout=10) as sock,
        trusting.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        assert (tls.version(), tls.selected_alpn_protocol()) == (spoken, "http/1.1")


def test_older_versions_are_refused(files):
    """The context says so; today's OpenSSL cannot even ask for them."""
    assert tls_context(*files).minimum_version == ssl.TLSVersion.TLSv1_2


def test_handshake_that_never_ends_is_cut_off(encrypted):
    """A client that connects and says nothing, or begins and stops: no minute of the loop's own, but our bound."""
    for sent in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
        with socket.create_connection((encrypted.host, encrypted.port), timeout=10) as sock:
            sock.sendall(sent)
            started = time.monotonic()
            assert sock.recv(1024) == b""
            assert 0.5 < time.monotonic() - started < 5


@pytest.fixture(params=["asyncio", "uvloop"])
def either_loop(request, monkeypatch):
    """Servers that start now run on this event loop."""
    module = pytest.importorskip(request.param, reason="an event loop that is not installed everywhere")
    monkeypatch.setattr("uvicorn.Config.get_loop_factory", lambda _: module.new_event_loop)


@pytest.fixture
def connect():
    """Makes connections, encrypted if a context is given, that end with the test."""
    with contextlib.ExitStack() as opened:

        def begin(running, context=None, sent=b""):
            sock = opened.enter_context(socket.create_connection((running.host, running.port), timeout=10))
            if context is not None:
                # An end without a goodbye is an error here, not the end of the data.
                tls = context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
                sock = opened.enter_context(tls)
            sock.sendall(sent)
            return sock

        yield begin


def ask(tls):
    """The status of what comes over an encrypted connection."""
    tls.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    reply = http.client.HTTPResponse(tls)
    reply.begin()
    reply.read()
    return reply.status


def is_open(sock):
    """Whether the other side has not ended it by now."""
    sock.settimeout(0)
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@pytest.mark.usefixtures("either_loop")
def test_handshakes_are_bounded_in_number(start_server, files, trusting, connect):
    """What never ends its handshake counts as a connection; the one that waits longest gives way to the next."""
    running = start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(connections=100, header_s=30.0))
    first = [connect(running, sent=b"\x16\x03\x01") for _ in range(99)]
    tls = connect(running, trusting)
    assert ask(tls) == 200
    assert all(is_open(sock) for sock in first)
    second = [connect(running, sent=b"\x16\x03\x01") for _ in range(5)]
    wait_until(lambda: not any(is_open(sock) for sock in first[:5]))
    assert all(is_open(sock) for sock in first[5:] + second)
    assert ask(connect(running, trusting)) == 200
    assert ask(tls) == 200


@pytest.mark.usefixtures("either_loop")
def test_who_comes_to_a_full_house_over_https_is_told(start_server, files, trusting, connect):
    """Connections beyond the bound are answered with 503 as unencrypted ones are, many more are closed at once."""
    running = start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(connections=2, header_s=30.0))
    there = running.server.server_state.connections
    first, second = (connect(running, trusting) for _ in range(2))
    assert ask(first) == ask(second) == 200
    third = connect(running, trusting)
    assert ask(third) == 503
    third.close()
    wait_until(lambda: len(there) == 2)
    more = [connect(running, trusting) for _ in range(64)]
    wait_until(lambda: len(there) == 66)
    assert read_end(connect(running, trusting)) == b""
    wait_until(lambda: len(there) == 66)
    assert ask(more[-1]) == 503
    for sock in more:
        sock.close()
    wait_until(lambda: len(there) == 2)
    assert ask(first) == 200


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize(
    ("how", "sent"),
    [
        ("nothing", b""),
        ("half a record", b"\x16\x03\x01\x02"),
        ("no TLS", b"GET / HTTP/1.1\r\n\r\n"),
        ("reset", b"\x16\x03\x01\x02"),
        ("no trust", b""),
    ],
)
def test_handshakes_that_fail_leave_nothing(start_server, files, connect, how, sent):
    """Whatever ends one, its socket is closed here too, and is counted no more."""
    running = start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(header_s=1.0))
    stranger = ssl.create_default_context()
    socks = [connect(running, sent=sent) for _ in range(10)]
    assert len(connections_of(running)) >= len(socks)
    for sock in socks:
        if how == "no trust":
            with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
                stranger.wrap_socket(sock, server_hostname="localhost")
        elif how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            assert b"HTTP" not in read_end(sock)
        sock.close()
    deadline = time.monotonic() + 10
    while left := connections_of(running):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    [listener] = running.server.servers
    assert not listener._handshakes


def test_header_over_https_is_bounded_too(encrypted, trusting):
    """The clock of the headers begins behind the handshake."""
    with (
        socket.create_connection((encrypted.host, encrypted.port), timeout=10) as sock,
        trusting.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"GET /version HT")
        started = time.monotonic()
        assert read_end(tls) == b""
        assert time.monotonic() - started < 5


def test_unencrypted_request_is_not_answered(encrypted):
    """Plain HTTP at the port of https ends the connection, and others go on."""
    with socket.create_connection((encrypted.host, encrypted.port), timeout=10) as sock:
        sock.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP" not in read_end(sock)
    assert encrypted.thread.is_alive()


def test_files_that_cannot_be_are_refused(authority, files, tmp_path):
    """Each with its own words, before anything is bound."""
    cert, key = files
    other = write(tmp_path, authority.issue_cert("localhost"))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("nothing of the kind")
    binary = tmp_path / "binary.der"
    binary.write_bytes(b"\xff\xfe")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for pair, match in (
        ((tmp_path / "none", key), "certificate .*none cannot be read: No such file"),
        ((cert, tmp_path / "none"), "key .*none cannot be read: No such file"),
        ((garbage, key), "certificate .*garbage.pem holds no certificate in PEM"),
        ((cert, garbage), "key .*garbage.pem holds no key in PEM"),
        ((key, cert), "holds no certificate in PEM"),
        ((binary, key), "certificate .*binary.der holds no certificate in PEM"),
        ((broken, key), "certificate .*broken.pem with the key"),
        ((cert, other[1]), "key .* is not that of the certificate"),
    ):
        with pytest.raises(ConfigError, match=match):
            tls_context(*pair)


@pytest.mark.parametrize(
    ("first", "last", "match"),
    [(NOW - 3 * DAY, NOW - DAY, "has expired"), (NOW + DAY, NOW + 3 * DAY, "is not valid yet")],
)
def test_certificate_that_is_not_valid_now_is_refused(authority, tmp_path, first, last, match):
    """Clients would find out one by one."""
    pair = write(tmp_path, authority.issue_cert("localhost", not_before=first, not_after=last))
    with pytest.raises(ConfigError, match=match):
        tls_context(*pair)


def test_encrypted_key_is_refused_without_asking(files, tmp_path):
    """OpenSSL would ask the terminal for the password, and the server wait for ever."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files[1].read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=r"key .*locked.pem is encrypted"):
        tls_context(files[0], locked)


def test_self_signed_certificate_is_taken(tmp_path):
    """It is its own authority, which those who trust it know."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 90 * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    assert isinstance(tls_context(cert_file, key_file), ssl.SSLContext)


def test_words_between_certificates_are_left_aside(authority, tmp_path):
    """Files that list whose certificates they hold, in any letters, also with another system's ends of lines."""
    cert, key = write(tmp_path, authority.issue_cert("localhost"))
    blocks = [*cert.read_text().partition("-----END CERTIFICATE-----\n")]
    cert.write_text("# Erzeugt für Müller\n" + blocks[0] + blocks[1] + "# Root: Ωmega\n" + blocks[2], encoding="utf-8")
    key.write_bytes(key.read_bytes().replace(b"\n", b"\r\n"))
    assert isinstance(tls_context(cert, key), ssl.SSLContext)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_warns_of_a_key_that_others_may_read(files, tmp_path, caplog):
    """And of a certificate that ends soon; of neither otherwise."""
    tls_context(*files)
    assert not caplog.records
    copy = tmp_path / "key.pem"
    copy.write_bytes(files[1].read_bytes())
    copy.chmod(0o644)
    tls_context(files[0], copy)
    assert "may open the TLS key" in caplog.text
    caplog.clear()
    pair = write(tmp_path, trustme.CA().issue_cert("localhost", not_before=NOW - DAY, not_after=NOW + 3 * DAY))
    tls_context(*pair)
    assert "ends on" in caplog.text


def test_half_a_pair_is_refused(files):
    """One file without the other is a mistake, not plain HTTP."""
    with pytest.raises(ConfigError, match="a TLS certificate is given without a key"):
        ServeSettings(tls_cert=files[0])
    with pytest.raises(ConfigError, match="a TLS key is given without a certificate"):
        ServeSettings(tls_key=files[1])


def test_nothing_is_bound_or_loaded_with_bad_files(files, tmp_path):
    """The error comes from making the server."""

    def load():
        raise AssertionError("loaded")

    with pytest.raises(ConfigError, match="cannot be read"):
        PioServer(ServeSettings(port=0, tls_cert=files[0], tls_key=tmp_path / "none"), "m", load)


def test_command_takes_the_files(files):
    """``pio serve --tls-cert --tls-key`` refuses a pair that does not fit, in one line and without a traceback."""
    code = (
        "import sys; from inference_pio.serve._command import serve; from inference_pio.interfaces import PioError\n"
        "try: serve(sys.argv[1:])\nexcept PioError as error: print(error); raise SystemExit(error.exit_code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "--port", "0", "--tls-cert", str(files[0]), "--tls-key", str(files[0])],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "holds no key in PEM" in ended.stdout


def test_renewed_certificate_is_taken(start_server, authority, tmp_path, trusting, monkeypatch, caplog):
    """By new connections, without a restart; what cannot be served leaves the old one, and is told once."""
    monkeypatch.setattr("inference_pio.serve._tls.LOOK_S", 0.0)
    cert, key = write(tmp_path, authority.issue_cert("localhost"))
    running = start_server(tls_cert=cert, tls_key=key)

    def serial():
        with (
            socket.create_connection((running.host, running.port), timeout=10) as sock,
            trusting.wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            tls.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert tls.recv(1024).startswith(b"HTTP/1.1 200")
            return tls.getpeercert()["serialNumber"]

    first = serial()
    assert serial() == first
    write(tmp_path, authority.issue_cert("localhost"))
    second = serial()
    assert second != first
    assert serial() == second
    with caplog.at_level("WARNING", logger="inference_pio.serve"):
        key.unlink()
        assert [serial() for _ in range(3)] == [second] * 3
    assert caplog.text.count("stays as it was") == 1
    write(tmp_path, authority.issue_cert("localhost"))
    assert serial() not in {first, second}


def test_slow_reader_over_https_is_cut_off(start_server, files, trusting):
    """The clock of writing runs behind the encryption too: what nobody reads is ended, and its pages are free."""
    running = start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(write_s=1.0))
    body = json.dumps({"prompt": "Once", "max_tokens": 1900, "n": 8, "stream": True, "ignore_eos": True,
                       "logprobs": 5})  # fmt: skip
    with socket.create_connection((running.host, running.port), timeout=10) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with trusting.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            deadline = time.monotonic() + 30
            while not running.engine.scheduler.running and time.monotonic() < deadline:
                time.sleep(0.01)
            assert running.engine.scheduler.running
            running.wait_until_idle(40)
    assert running.model.llm.metrics.requests_finished.values.get("abort", 0) > 0


@pytest.mark.usefixtures("either_loop")
def test_long_reply_is_read_to_its_end(start_server, files, trusting, monkeypatch):
    """A client that reads slowly has as long after the server has closed as it had before."""

    async def app(_scope, _receive, send):
        headers = [(b"content-length", b"%d" % len(reply)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    reply = bytes(16 * 1024 * 1024)
    monkeypatch.setattr("inference_pio.serve._lifecycle.create_app", lambda _: app)
    running = start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(header_s=0.5))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        sock.connect((running.host, running.port))
        with trusting.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(1.5)
            assert read_end(tls).endswith(b"\r\n\r\n" + reply)


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize(("idle_s", "end_s"), [(1.1, 2.9), (0.0, 4.8)])
def test_idle_clients_do_not_hold_up_the_end(start_server, files, trusting, connect, caplog, idle_s, end_s):
    """Nor those that never end their handshake: who keeps a connection for later does not look at the goodbye on it."""
    running = start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(header_s=30.0))
    idle = connect(running, trusting)
    assert ask(idle) == 200
    never = [connect(running, trusting), connect(running, sent=b"\x16\x03\x01"), connect(running)]
    time.sleep(idle_s)
    started = time.monotonic()
    running.server.drain()
    running.thread.join(20)
    assert not running.thread.is_alive()
    assert time.monotonic() - started < end_s
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert [read_end(sock) for sock in (idle, *never)] == [b""] * 4


@pytest.mark.usefixtures("either_loop")
def test_idle_connection_is_ended_without_the_clients_goodbye(start_server, files, trusting, connect):
    """When its time between requests is over, though the client never looks; a client that does is told politely."""
    running = start_server(tls_cert=files[0], tls_key=files[1], bounds=Bounds(idle_s=1.0))
    polite, other = connect(running, trusting), connect(running, trusting)
    assert ask(polite) == ask(other) == 200
    wait_until(lambda: not running.server.server_state.connections, seconds=5)
    assert polite.recv(1) == b""


def test_replicas_over_https(start_process, files, trusting, connect):
    """The router encrypts, with the same bounds; its replicas are told nothing of it.

    Answers and streams are those of a server; a stream whose replica is killed ends with an error event; SIGTERM ends
    all of it in time while handshakes are open and a stream runs.
    """
    process = start_process(
        *("--tls-cert", str(files[0]), "--tls-key", str(files[1])),
        *("--replicas", "2", "--threads", "1", "--drain-timeout", "1"),
    )
    url = re.search(r"at (https://127\.0\.0\.1:\d+)/v1 \(2 replicas", process.wait_for("serving"))[1]
    replicas = psutil.Process(process.process.pid).children()
    assert not any(conn.status == "LISTEN" for child in replicas for conn in child.net_connections("tcp"))
    place, key = Address("127.0.0.1", int(url.rpartition(":")[2])), {"authorization": f"Bearer {process.key}"}
    asked = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Count."}], "temperature": 0}
    long = {**asked, "max_tokens": 4000, "stream": True, "extra_body": {"ignore_eos": True}}
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=process.key, max_retries=0, http_client=httpx2.Client(verify=trusting)
    ) as client:
        whole = client.chat.completions.create(**asked, max_tokens=8).choices[0].message.content
        chunks = list(client.chat.completions.create(**asked, max_tokens=8, stream=True))
        assert whole == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            client.chat.completions.create(**{**asked, "model": "other"})
        cut_off = iter(client.chat.completions.create(**long))
        next(cut_off)
        for child in replicas:
            child.kill()
        with pytest.raises(openai.APIError, match="the replica that answered has ended"):
            list(cut_off)
        wait_until(lambda: httpx2.get(f"{url}/health", verify=trusting, headers=key).is_success, seconds=30)
        silent = [connect(place, sent=b"\x16\x03\x01") for _ in range(10)]
        stopped = iter(client.chat.completions.create(**long))
        next(stopped)
        process.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the server stopped before the answer was finished"):
            list(stopped)
        assert process.process.wait(10) == 0
        assert not any(is_open(sock) for sock in silent)
