"""The command against a server over a real socket, against the engine in this process, and its errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from inference_pio.benchmarks import read_record

FEW = ("--num-prompts", 6, "--input-len", "20-30", "--output-len", 4, "--num-warmups", 1)


def values(record):
    return {each["name"]: each["values"][0] for each in record["results"]}


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_server_over_http(pio_bench, model_server, tmp_path, endpoint):
    """Counts are the server's, the record is read back, and nothing in it says where the server is."""
    path = tmp_path / "record.json"
    done = pio_bench(
        "serve", "--base-url", f"{model_server.url}/v1", "--endpoint", endpoint, *FEW, "--seed", 5, "--max-concurrency",
        2, "--goodput", "ttft:60000,e2el:60000", "--json", "--save-result", path, "--save-detailed",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = values(done.json)
    assert (found["requests completed"], found["requests failed"], found["output tokens"]) == (6, 0, 24)
    assert 6 * 20 <= found["input tokens"] <= 6 * 30
    assert found["peak concurrency"] == 2
    assert found["goodput"] == found["request throughput"] > 0
    assert found["CPU of the load generator per chunk"] > 0
    assert (
        done.json["settings"] | {"model": "tiny", "target": "http", "seed": 5, "max_concurrency": 2}
        == done.json["settings"]
    )
    assert read_record(path).settings == done.json["settings"]
    assert model_server.port not in done.json["settings"].values()
    assert not re.search(r"127\.0\.0\.1|localhost|http:", path.read_text())
    generations = [asked for asked in model_server.asked if asked.method == "POST"]
    assert len(generations) == 2 + 1 + 6
    assert {asked.body["model"] for asked in generations} == {"tiny"}
    assert all(asked.body["ignore_eos"] for asked in generations)
    assert model_server.connections <= 3


def test_the_block_for_people(pio_bench, model_server):
    """vLLM's, on standard output; the distributions that were asked for."""
    done = pio_bench(
        "serve", "--base-url", model_server.url, *FEW, "--request-rate", 200, "--burstiness", 4,
        "--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50,99.9",
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert "Successful requests:                     6" in lines
    assert "Request rate configured (RPS):           200.00" in lines
    heads = [line.partition(":")[0] for line in lines]
    assert [head for head in heads if "(ms)" in head] == [
        f"{statistic} {short} (ms)" for short in ("TTFT", "E2EL") for statistic in ("Mean", "Median", "P50", "P99.9")
    ]


def test_delays_of_the_server_are_seen(pio_bench, serving, wire):
    """Scripted pauses are lower bounds of what is measured, and an opening chunk without text is told of."""

    def answer(asked):
        yield wire.head + wire.event(wire.delta(role="assistant", content=""))
        yield 0.06
        yield wire.event(wire.delta(content="a b")) if asked.body["max_completion_tokens"] > 1 else b""
        yield 0.04
        yield (
            wire.event(wire.delta("stop", content="c")) + wire.event(wire.usage(7, 3)) + wire.event("[DONE]") + wire.end
        )

    server = serving(answer)
    options = ("serve", "--base-url", server.url, "--model", "m", "--endpoint", "chat", *FEW, "--max-concurrency", 3)
    done = pio_bench(*options, "--json")
    assert "TTFT counts chunks without text" in done.err
    found = values(done.json)
    assert found["mean E2EL"] >= 100
    decoding = found["mean E2EL"] - found["mean TTFT"]
    assert found["mean TPOT"] == pytest.approx(decoding / 2)  # two of the three tokens
    assert found["mean ITL"] == pytest.approx(decoding / 2)  # two gaps between three chunks
    text = pio_bench(*options, "--json", "--ttft-until", "text")
    assert "TTFT counts" not in text.err
    found = values(text.json)
    assert found["mean TTFT"] >= 60
    decoding = found["mean E2EL"] - found["mean TTFT"]
    assert found["mean TPOT"] == pytest.approx(decoding / 2)
    assert found["mean ITL"] == pytest.approx(decoding)  # one gap is left


def test_a_dataset(pio_bench, model_server, tmp_path):
    """Its prompts, once each, to their ends; its name in the record, its folder not."""
    path = tmp_path / "some" / "questions.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(json.dumps({"prompt": f"question {n}", "output_len": n}) for n in range(1, 6)))
    done = pio_bench("serve", "--base-url", model_server.url, "--dataset", path, "--json")
    assert values(done.json)["output tokens"] == 15
    assert done.json["settings"]["dataset"] == "questions.jsonl"
    assert str(tmp_path) not in done.out
    asked = [each.body for each in model_server.asked if each.body and each.body["prompt"].startswith("question")]
    assert sorted(body["prompt"] for body in asked) == [f"question {n}" for n in range(1, 6)]
    assert not any("ignore_eos" in body for body in asked)
    short = pio_bench("serve", "--base-url", model_server.url, "--dataset", path, "--num-prompts", 9)
    assert short.code == 2
    assert "the dataset has 5" in short.err


def test_some_requests_fail(pio_bench, serving, wire):
    """They are counted and told with their reasons; the rest is measured."""
    seen = []

    def answer(asked):
        seen.append(asked)
        if len(seen) > 3 and len(seen) % 2:
            yield wire.plain({"error": {"message": "queue is full"}}, "429 Too Many Requests")
        else:
            yield wire.head + wire.event(wire.text("x", "stop")) + wire.event("[DONE]") + wire.end

    done = pio_bench("serve", "--base-url", serving(answer).url, "--model", "m", *FEW, "--max-concurrency", 1, "--json")
    assert done.code == 0
    assert (values(done.json)["requests completed"], values(done.json)["requests failed"]) == (3, 3)
    assert "3 requests failed: the server answers 429: queue is full" in done.err
    assert any("reports no usage" in warning for warning in done.json["warnings"])


def test_all_requests_fail(pio_bench, serving, wire):
    """There is nothing to report but the reason."""
    seen = []

    def answer(asked):
        seen.append(asked)
        if len(seen) > 2:
            yield wire.plain({"error": {"message": "broken"}}, "500 Internal Server Error")
            return
        yield wire.head + wire.event(wire.text("x", "stop")) + wire.event("[DONE]") + wire.end

    done = pio_bench("serve", "--base-url", serving(answer).url, "--model", "m", *FEW, "--num-warmups", 0)
    assert done.code == 1
    assert "none of 6 requests was answered: the server answers 500: broken" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("status", "message", "code", "told"),
    [
        ("401 Unauthorized", "invalid key", 1, "the server answers 401: invalid key (give the key by --api-key-file"),
        ("404 Not Found", "no model nope", 3, "the server answers 404: no model nope (--model names one"),
        ("429 Too Many Requests", "full", 1, "lower --max-concurrency or --request-rate"),
        ("503 Service Unavailable", "loading", 1, "is it still loading?"),
        ("400 Bad Request", "unknown parameter: ignore_eos", 1, "leave it out by --no-ignore-eos"),
    ],
)
def test_refusals_end_the_command_at_once(pio_bench, serving, wire, status, message, code, told):
    """Before the load, on one line, with the way out."""
    server = serving(lambda _asked: [wire.plain({"error": {"message": message}}, status)])
    done = pio_bench("serve", "--base-url", server.url, "--model", "nope")
    assert done.code == code
    assert told in done.err
    assert len(done.err.splitlines()) == 1
    assert len(server.asked) == 1


def test_no_server_and_no_model(pio_bench, serving, wire):
    """Down, or up with nothing to serve."""
    done = pio_bench("serve", "--base-url", "http://127.0.0.1:1")
    assert done.code == 1
    assert "no connection to http://127.0.0.1:1: Connection refused (is the server running?)" in done.err
    empty = pio_bench("serve", "--base-url", serving(lambda _asked: [wire.plain({"data": []})]).url)
    assert empty.code == 3
    assert "serves no model" in empty.err


def test_the_key_goes_to_the_server_and_nowhere_else(pio_bench, model_server, tmp_path):
    """In every request's header, in no record."""
    key = tmp_path / "key"
    key.write_text("sk-secret-1\n")
    done = pio_bench("serve", "--base-url", model_server.url, *FEW, "--api-key-file", key, "--json")
    assert done.code == 0
    assert {asked.headers["authorization"] for asked in model_server.asked} == {"Bearer sk-secret-1"}
    assert "sk-secret-1" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--base-url", "http://h", "--overhead"), "--base-url and --overhead exclude each other"),
        (("--in-process", "m", "--model", "n"), "--in-process names the model already"),
        (("--overhead", "--endpoint", "chat"), "--overhead measures completions"),
        (("--overhead", "--goodput", "ttft:1"), "--overhead takes no --goodput"),
        (("--request-rate", "-1"), "--request-rate: '-1' is no positive number"),
        (("--input-len", "x"), "--input-len: 'x' is no length"),
        (("--extra-body", "{"), "--extra-body: '{' is no JSON"),
        (("--percentile-metrics", "x"), "unknown metric 'x'"),
        (("--metric-percentiles", "x"), "'x' is no percentile"),
        (("--base-url", "ftp://h"), "'ftp://h' is no URL of a server"),
    ],
)
def test_options_that_do_not_go_together(pio_bench, arguments, message):
    """Exit code 2, before anything is sent."""
    done = pio_bench("serve", *arguments)
    assert done.code == 2
    assert message in done.err


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
def test_ctrl_c_reports_what_there_is(pio_bench, serving, wire):
    """The requests that were answered, that it was stopped, and the exit code of interrupted programs."""
    seen = []

    def answer(asked):
        seen.append(asked)
        if len(seen) == 6:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if len(seen) > 5:
            yield 30.0
        yield (
            wire.head
            + wire.event(wire.text("x", "stop"))
            + wire.event(wire.usage(5, 1))
            + wire.event("[DONE]")
            + wire.end
        )

    before = signal.getsignal(signal.SIGINT)
    server = serving(answer)
    done = pio_bench(
        "serve",
        "--base-url",
        server.url,
        "--model",
        "m",
        *FEW,
        "--num-prompts",
        50,
        "--num-warmups",
        0,
        "--max-concurrency",
        1,
    )
    assert done.code == 130
    assert "stopped after 3 of 50 requests" in done.err
    assert "Successful requests:                     3" in done.out
    assert signal.getsignal(signal.SIGINT) is before


def test_more_requests_at_once_than_files_may_be_open(pio_bench, model_server):
    """The limit is raised as far as it goes; nobody has to know of it."""
    resource = pytest.importorskip("resource", reason="only POSIX limits open files")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 2000:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        done = pio_bench("serve", "--base-url", model_server.url, *FEW, "--num-prompts", 100, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert values(done.json)["requests completed"] == 100


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_the_server_that_was_started(tmp_path):
    """In the middle of --overhead: exit code 130, and no process left behind."""
    child = tmp_path / "child.py"
    child.write_text("import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n")
    program = (
        "import sys\n"
        "from inference_pio.benchmarks import _serve_server\n"
        "from inference_pio.cli import main\n"
        "_serve_server.serve_command = lambda model, port: [sys.executable, 'child.py']\n"
        "sys.exit(main(['bench', 'serve', '--overhead']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_the_engine_in_this_process(pio_bench, endpoint):
    """The same figures without a server; tokens come out as asked, template included."""
    done = pio_bench(
        "serve", "--in-process", "smollm2-135m-instruct", "--endpoint", endpoint, "--num-prompts", 4, "--input-len", 60,
        "--output-len", 5, "--max-concurrency", 2, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = values(done.json)
    assert (found["requests completed"], found["output tokens"]) == (4, 20)
    assert found["input tokens"] == pytest.approx(240, rel=0.05)
    assert (done.json["settings"]["target"], done.json["settings"]["model"]) == ("in-process", "smollm2-135m-instruct")
    assert "CPU of the load generator per chunk" not in found


def test_no_such_model_in_process(pio_bench):
    """As everywhere."""
    assert pio_bench("serve", "--in-process", "no-such-model-here").code == 3
