"""Addresses that a server cannot listen at, and connections without end."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference_pio.interfaces import ConfigError
from inference_pio.serve import Bounds, PioServer, ServeSettings, serve
from inference_pio.serve import _bind as binding
from inference_pio.serve._bind import bind
from inference_pio.serve._open_files import allow_open_files
from inference_pio.serve._router.server import RouterServer

TAKEN = r"port \d+ of 127.0.0.1 is taken by another program \(give another one with --port; 0 takes one that is free\)"


def never():
    raise AssertionError("loaded")


def read_end(sock):
    """What comes until the other side ends it, politely or not."""
    try:
        return sock.recv(1024)
    except ConnectionResetError:
        return b""


@pytest.fixture
def taken():
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def test_port_that_is_taken_ends_the_server_before_it_loads(taken, tmp_path, monkeypatch):
    """With the port and the way out; the admin socket that was made before is gone."""
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    admin = Path("admin.sock")
    with pytest.raises(ConfigError, match=TAKEN):
        serve(PioServer(ServeSettings(port=taken, admin_socket=admin), "m", never))
    assert not admin.exists()


def test_port_that_is_taken_ends_a_router_before_it_starts_replicas(taken):
    """The same."""
    with pytest.raises(ConfigError, match=TAKEN):
        serve(RouterServer(ServeSettings(port=taken), [None], lambda *_: never()))


def test_port_of_another_server_of_ours(start_server):
    """Is taken too, though both say that addresses may be used again."""
    running = start_server()
    with pytest.raises(ConfigError, match=TAKEN):
        serve(PioServer(ServeSettings(port=running.port), "m", never))


@pytest.mark.parametrize("more", [(), ("--replicas", "2")])
def test_command_says_it_in_one_line(taken, more):
    """``pio serve`` exits as for other mistakes in what it was told, and without a traceback."""
    ended = subprocess.run(
        [sys.executable, "-m", "inference_pio.cli", "serve", "--port", str(taken), *more],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    lines = ended.stderr.splitlines()
    assert lines[-1].startswith(f"pio: error: port {taken} of 127.0.0.1 is taken")
    assert "--port" in lines[-1]
    assert all(line.startswith("pio: ") for line in lines)


@pytest.mark.parametrize(
    ("host", "match"),
    [
        ("192.0.2.1", r"192\.0\.2\.1 is no address of this machine \(give one of its own with --host"),
        ("no-such-host.invalid", r"the host 'no-such-host\.invalid' has no address: .* \(give one with --host"),
        ("x" * 80, r"the host 'x+' has no address: it is no name \(give one with --host"),
        ("", r"the host '' has no address: .*"),
    ],
)
def test_hosts_that_cannot_be(host, match):
    """Each with its own words."""
    with pytest.raises(ConfigError, match=match):
        bind(host, 0)


def failing(number, monkeypatch, only=lambda _: True):
    """Have the system refuse addresses."""
    listen = binding._listen

    def refuse(family, kind, address):
        if only(address):
            raise OSError(number, os.strerror(number))
        return listen(family, kind, address)

    monkeypatch.setattr(binding, "_listen", refuse)


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (errno.EACCES, r"port 80 of 127.0.0.1 is not for this user: .* \(give one above 1023 with --port\)"),
        (errno.EPERM, r"port 80 of 127.0.0.1 is not for this user: .* \(give one above 1023 with --port\)"),
        (errno.ENOBUFS, r"nothing can listen at port 80 of 127.0.0.1: .* \(give others with --host and --port\)"),
    ],
)
def test_what_the_system_refuses_is_told(monkeypatch, number, match):
    """With its words and the way out."""
    failing(number, monkeypatch)
    with pytest.raises(ConfigError, match=match):
        bind("127.0.0.1", 80)


def two_addresses(monkeypatch):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_name_with_an_address_that_this_machine_lacks(monkeypatch, number):
    """As ``localhost`` has where IPv6 is turned off: the others are listened at, each once."""
    two_addresses(monkeypatch)
    failing(number, monkeypatch, only=lambda address: address[0] == "127.0.0.2")
    [sock] = bind("localhost", 0)
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_nothing_stays_open_where_one_of_two_addresses_is_taken(monkeypatch):
    """The error names the address, and the other's socket is closed: an open one would warn."""
    two_addresses(monkeypatch)
    failing(errno.EADDRINUSE, monkeypatch, only=lambda address: address[0] == "127.0.0.1")
    with pytest.raises(ConfigError, match="port 0 of localhost is taken"):
        bind("localhost", 0)


def test_connections_far_above_the_bound_are_closed_at_once(start_server):
    """Those that are told so are few; the system's files are not all theirs."""
    running = start_server(bounds=Bounds(connections=2, header_s=30.0))
    there = running.server.server_state.connections
    socks = [socket.create_connection((running.host, running.port), timeout=10) for _ in range(80)]
    deadline = time.monotonic() + 10
    while len(there) != 66:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [read_end(sock) for sock in socks[66:]] == [b""] * 14
    socks[65].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert read_end(socks[65]).startswith(b"HTTP/1.1 503")
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_survives_being_out_of_files(loop):
    """Connections wait until there are files again, and the log says so once a second, not once each."""
    pytest.importorskip(loop, reason="an event loop that is not installed everywhere")
    pytest.importorskip("resource", reason="limits of POSIX")
    code = (
        f"import resource, sys, uvicorn, {loop}\n"
        f"uvicorn.Config.get_loop_factory = lambda _: {loop}.new_event_loop\n"
        "from inference_pio.serve._command import serve\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))\n"
        "serve(['--port', '0', '--preload', 'none', '--drain-timeout', '0'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            first = "".join(process.stderr.readline() for _ in range(3))
            assert "is loaded when it is asked for" in first  # files that it begins with are read
            port = int(re.search(r"few for 1024 connections.*at http://127\.0\.0\.1:(\d+)", first, re.DOTALL)[1])
            socks = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(120)]
            lines = [process.stderr.readline() for _ in range(3)]
            for sock in socks:
                sock.close()
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert read_end(sock).startswith(b"HTTP/1.1 200")
            process.terminate()
            lines += process.stderr.readlines()
        finally:
            process.kill()
    assert 1 <= len([line for line in lines if "no connection can be taken: Too many open files" in line]) < 10
    assert len(lines) < 12


@pytest.mark.parametrize(
    ("soft", "hard", "set_to", "warns"),
    [
        (1024, 500_000, 2688, False),
        (1024, 2000, 2000, True),
        (1024, -1, 2688, False),
        (4096, 4096, None, False),
        (-1, -1, None, False),
    ],
)
def test_open_files_are_allowed(monkeypatch, caplog, soft, hard, set_to, warns):
    """As many as the bound of connections needs and the system lets it, and never fewer than before."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    done = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: done.append(limits))
    allow_open_files(1024 - 64, files_each=2)
    assert done == ([] if set_to is None else [(set_to, hard)])
    assert ("too few for 960 connections" in caplog.text) == warns
