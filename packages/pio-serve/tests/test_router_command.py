"""``pio serve --replicas`` as processes: its lines, its signals, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from inference_pio.interfaces import ConfigError
from inference_pio.serve._command import serve
from inference_pio.serve._router.cpus import cores_of, share_cpus, split_cores
from inference_pio.serve._router.metrics import merged
from inference_pio.serve._router.replicas import Replicas


@pytest.fixture
def start_router(start_process):
    """As ``start_process``, before two replicas."""
    return partial(start_process, "--replicas", "2")


def children_of(process):
    return psutil.Process(process.process.pid).children()


def gone(processes, seconds=10.0):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_drains(start_router):
    """On SIGTERM what runs ends whole within the bound, and with an error event beyond; then all processes have ended.

    Its replicas have cores of their own where there are enough, and neither the key nor an order in their arguments.
    """
    process = start_router("--drain-timeout", "1.5")
    line = process.wait_for("serving")
    assert re.search(
        r"serving smollm2-135m-instruct at http://\S+/v1 \(2 replicas, each .*1 API key; ready after", line
    )
    children = children_of(process)
    assert [child.cmdline()[1:] for child in children] == [["-P", "-m", "inference_pio.serve._router.replica"]] * 2
    assert not any("PIO_SERVE_API_KEY" in child.environ() for child in children)
    if hasattr(os, "sched_getaffinity") and len(cores_of(os.sched_getaffinity(0), Path("/"))) > 1:
        mine, other = (set(child.cpu_affinity()) for child in children)
        assert not mine & other
    answers = []
    short = threading.Thread(target=lambda: answers.append(process.chat(20)))
    long = process.chat_stream(8000)
    short.start()
    process.wait_for_running(2, unless=answers)
    process.process.send_signal(signal.SIGTERM)
    while (found := process.chat(1))[0] == 200:
        time.sleep(0.01)
    status, refusal = found
    assert (status, refusal["error"]["code"]) == (503, "stopping")
    rest = long.read()
    short.join(10)
    [(status, answer)] = answers
    assert (status, answer["usage"]["completion_tokens"]) == (200, 20)
    assert rest.endswith(b"data: [DONE]\n\n")
    assert b'"code":"stopping"' in rest
    assert process.process.wait(15) == 0
    assert gone(children)


@pytest.mark.parametrize("once", ["listening", pytest.param("serving", marks=pytest.mark.slow)])
def test_nothing_outlives_a_router_that_is_killed(start_router, once):
    """Its replicas see their standard input end, whatever they are doing; the last of them removes their folder."""
    with tempfile.TemporaryDirectory(prefix="pio-") as folder:
        process = start_router("--threads", "1", TMPDIR=folder)
        process.wait_for(once)
        while not (children := children_of(process)):
            time.sleep(0.02)
        if once == "listening":
            time.sleep(0.5)  # for it to have its order; what it then loads is not there yet
        assert list(Path(folder).glob("pio-serve-*"))
        process.process.kill()
        assert gone(children)
        assert not list(Path(folder).iterdir())


def test_interrupted_while_it_loads(start_router):
    """Ctrl-C ends all of it, with the exit code of that."""
    process = start_router("--threads", "1")
    process.wait_for("listening")
    while not (children := children_of(process)):
        time.sleep(0.02)
    process.process.send_signal(signal.SIGINT)
    assert process.process.wait(15) == 130
    assert gone(children)


def test_a_model_that_is_not_there(start_router):
    """Ends the router as it would end a server: with the reason, the hint and the exit code."""
    process = start_router("no-such-model-anywhere")
    assert process.process.wait(30) == 3
    said = process.process.stderr.read()
    assert "no-such-model-anywhere" in said
    assert "Traceback" not in said


def test_stopped_before_it_was_started(tmp_path, monkeypatch):
    """Nothing is there to end, and no folder to remove, least of all the one that the process is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    replicas = Replicas(
        [None], None, on_spent=None, on_gone=None, open_of=None, drain_s=0.0
    )  # fmt: skip
    asyncio.run(replicas.stop())
    assert (tmp_path / "file").exists()
    assert replicas.ready == []


def test_a_folder_too_deep_for_sockets(start_router, tmp_path):
    """Is named, with the way out, rather than what a replica stumbles over."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    process = start_router(TMPDIR=str(folder))
    assert process.process.wait(30) == 2
    assert "set TMPDIR to a shorter one" in process.process.stderr.read()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("count", ["0", "-1", "257", "two"])
def test_counts_that_are_none(count):
    """A usage error, before anything is started."""
    assert CliRunner().invoke(serve, ["--replicas", count]).exit_code == 2


def test_admin_socket_is_of_one_server():
    """The router has no models to load or unload."""
    result = CliRunner().invoke(serve, ["--replicas", "2", "--admin-socket", "x"])
    assert isinstance(result.exception, ConfigError)
    assert "--admin-socket is of one server" in str(result.exception)


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        ([[0], [1]], 2, [[0], [1]]),
        ([[0, 2], [1, 3]], 2, [[0, 2], [1, 3]]),
        ([[0], [1], [2], [3], [4]], 2, [[0, 1], [2, 3, 4]]),
        ([[0], [1], [2], [3]], 3, [[0], [1], [2, 3]]),
        ([[0], [1]], 3, [None, None, None]),
        ([[7]], 1, [[7]]),
    ],
)
def test_cores_are_shared_out(cores, count, shares):
    """Whole cores, neighbours together, none to two; where there are too few, all run on all."""
    assert split_cores(cores, count) == shares


def test_cores_of_a_machine(tmp_path):
    """By what the system says of siblings; processors it says nothing of count for one each."""
    for cpu, siblings in ((0, "0,4"), (4, "0,4"), (1, "1,5"), (5, "1,5")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cores_of({5, 0, 1, 4, 6}, tmp_path) == [[0, 4], [1, 5], [6]]


def test_threads_are_shared_out():
    """Each at least one, however many there are."""
    assert share_cpus(2, 8)[1] == 4
    assert share_cpus(3, 8)[1] == 2
    assert share_cpus(9, 8)[1] == 1
    assert len(share_cpus(9, 8)[0]) == 9


def test_metrics_are_merged():
    """A family comes once, with the samples of all replicas and a label for each."""
    text = (
        "# HELP a One.\n# TYPE a counter\na{model_name=\"x y\"} 1\n"
        "# HELP b Two.\n# TYPE b gauge\nb 2\nb{} 3\n"
    )  # fmt: skip
    other = "# HELP a One.\n# TYPE a counter\na{model_name=\"{\"} 5\n# HELP c C.\n# TYPE c gauge\nc 1\n"  # fmt: skip
    assert list(merged({0: text, 3: other})) == [
        "# HELP a One.",
        "# TYPE a counter",
        'a{replica="0",model_name="x y"} 1',
        'a{replica="3",model_name="{"} 5',
        "# HELP b Two.",
        "# TYPE b gauge",
        'b{replica="0"} 2',
        'b{replica="0"} 3',
        "# HELP c C.",
        "# TYPE c gauge",
        'c{replica="3"} 1',
    ]
    assert list(merged({0: text}, without={"b"})) == [
        "# HELP a One.",
        "# TYPE a counter",
        'a{replica="0",model_name="x y"} 1',
    ]
    assert list(merged({})) == []
