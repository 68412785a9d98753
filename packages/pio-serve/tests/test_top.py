"""``pio top``: what it says agrees with the server, and what it does to the terminal is undone."""

from __future__ import annotations

import http.server
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from inference_pio.core import EngineMetrics
from inference_pio.interfaces import ConfigError, InvalidRequestError
from inference_pio.serve._figures import figures
from inference_pio.serve._metrics import exposition
from inference_pio.serve._scrape import Histogram, MetricsSource, ScrapeError, parse_metrics
from inference_pio.serve._top import top
from inference_pio.serve._top_view import draw, sparkline


def run_top(*arguments, key=None):
    environment = {"PIO_SERVE_API_KEY": key}
    return CliRunner().invoke(top, list(arguments), env=environment, catch_exceptions=False)


@pytest.fixture
def start_top():
    """Starts ``pio top`` as a process, which ends with the test."""
    started = []

    def begin(*arguments, key, stdout):
        process = subprocess.Popen(
            [sys.executable, "-m", "inference_pio.cli", "top", *arguments],
            stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, "PIO_SERVE_API_KEY": key},
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@contextmanager
def answering(status, body, headers=()):
    """A server that says the same to everyone; yields its address and the headers it was sent."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def text_of(**engines):
    return "\n".join(exposition(list(engines.items()))) + "\n"


def test_reads_what_prometheus_own_parser_reads():
    """Every sample with its labels, of two models, one with an odd name."""
    parser = pytest.importorskip("prometheus_client.parser", reason="Prometheus' parser is the oracle")
    first, second = EngineMetrics(), EngineMetrics()
    first.time_to_first_token.observe(0.3, 4)
    second.requests_finished.add(3, "stop")
    text = "\n".join(exposition([('a"b\\c\nd,e="f"', first), ("plain", second)])) + "\n"
    expected = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    scrape = parse_metrics(text)
    found = {(name, *sorted(labels.items())): value for name, rows in scrape.samples.items() for labels, value in rows}
    assert found == expected


@pytest.mark.parametrize("line", ["<html>", "pio:x", "pio:x{} abc", "pio:x{a=1", '{"a": 1}'])
def test_what_is_no_metrics_is_refused(line):
    """With the line, so that one sees what answered."""
    with pytest.raises(ScrapeError, match="which is no sample"):
        parse_metrics(f"pio:a 1\n{line}\n")


def test_figures_are_differences_of_readings():
    """Rates from the reading before, latencies from the oldest, all models together; the fullest cache counts."""
    first, second = EngineMetrics(), EngineMetrics()
    first.generation_tokens.add(10)
    first.request_latency.observe(100.0)
    first.kv_cache_usage.value = 0.25
    before = parse_metrics(text_of(a=first, b=second))
    first.generation_tokens.add(30)
    second.generation_tokens.add(20)
    second.request_latency.observe(0.2)
    second.kv_cache_usage.value = 0.5
    second.requests_running.value = first.requests_running.value = 2
    second.prefix_queries.add(8)
    second.prefix_hits.add(2)
    found = figures(parse_metrics(text_of(a=first, b=second)), before, before, seconds=2.0)
    assert found.models == ["a", "b"]
    assert found.running == 4
    assert found.generated_per_s == 25
    assert found.read_per_s == 0
    assert found.kv_cache_usage == 0.5
    assert found.prefix_hit_share == 0.25
    assert found.request.mean == pytest.approx(0.2)
    assert 0.1 < found.request.p50 <= 0.25
    assert found.first_token.mean is found.first_token.p95 is None


def test_restarted_server_has_no_negative_rate():
    """Its counters begin again; so do its histograms."""
    old, new = EngineMetrics(), EngineMetrics()
    old.generation_tokens.add(100)
    old.request_latency.observe(9.0, 5)
    new.request_latency.observe(0.2)
    before = parse_metrics(text_of(a=old))
    found = figures(parse_metrics(text_of(a=new)), before, before, seconds=1.0)
    assert found.generated_per_s is None
    assert found.request.mean == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ((), 0.5, None),
        (((1.0, 0.0), (math.inf, 0.0)), 0.5, None),
        (((1.0, 4.0), (math.inf, 4.0)), 0.5, 0.5),
        (((1.0, 4.0), (2.0, 8.0), (math.inf, 8.0)), 0.75, 1.5),
        (((1.0, 1.0), (math.inf, 4.0)), 0.95, 1.0),
        (((1.0, 0.0), (2.0, 2.0), (math.inf, 2.0)), 1.0, 2.0),
    ],
)
def test_quantiles_are_those_of_promql(buckets, share, expected):
    """Linear within an interval; what is above the last bound counts as that bound; values worked out by hand."""
    assert Histogram(buckets, 1.0).quantile(share) == expected


def test_sparkline_scales_and_leaves_gaps():
    """The largest is the highest block, an absent value a space, nothing at all the lowest."""
    assert sparkline([0, 1, None, 2]) == "▁▅ █"
    assert sparkline([0.0, 0.5, 1.0, 2.0], top=1.0) == "▁▅██"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize("width", [10, 33, 80, 200])
def test_no_line_is_wider_than_the_terminal_nor_moves_its_cursor(width):
    """Names come from the server, which may be anyone's: their control characters are spelled out."""
    scrape = parse_metrics(text_of(**{"evil\x1b[2Jname\x9b": EngineMetrics()}))
    lines = draw("http://h", [figures(scrape, None, None, seconds=0)] * 500, width=width, problem="gone\x1b]0;x\x07")
    assert all(len(line) <= width and (line.isprintable() or not line) for line in lines)


def test_once_agrees_with_the_server(served):
    """Totals are those of its engine."""
    served.chat("Hello", max_tokens=4)
    served.wait_until_idle()
    result = run_top("--url", served.url, "--once", "--json", "--refresh", "0.1", key=served.key)
    assert result.exit_code == 0
    [line] = result.stdout.splitlines()
    told = json.loads(line)
    engine = served.model.engine.snapshot()
    assert told["models"] == ["smollm2-135m-instruct"]
    assert told["running"] == told["waiting"] == told["kv_cache_usage"] == 0
    assert told["generated_per_s"] == told["read_per_s"] == 0
    assert {reason: count for reason, count in told["finished"].items() if count} == engine.requests_finished.values
    histogram = engine.time_to_first_token
    assert told["first_token"]["mean"] == pytest.approx(histogram.sum / histogram.count)
    text = run_top("--url", f"{served.url}/v1", "--once", "--refresh", "0.1", key=served.key).stdout
    assert text.startswith(f"smollm2-135m-instruct at {served.url}\n")
    assert "\x1b" not in text


def test_key_comes_from_a_file_too(served, tmp_path):
    """Its first; without any, the error says how to give one."""
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{served.key}\nanother-key-of-mine\n")
    arguments = ("--url", served.url, "--once", "--json", "--refresh", "0.1")
    assert run_top(*arguments, "--api-key-file", str(file)).exit_code == 0
    with pytest.raises(ScrapeError, match=r"no API key was given.*--api-key-file or PIO_SERVE_API_KEY"):
        run_top(*arguments)
    with pytest.raises(ScrapeError, match="the API key is wrong"):
        run_top(*arguments, key="a-wrong-key-of-mine")
    with pytest.raises(ConfigError, match="visible ASCII"):
        run_top(*arguments, key="a-key\r\nwith: a-header")


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://u:p@h", "http://h?key=1", "http://h:99999", "http://ä"])
def test_urls_that_are_none_are_refused(url):
    """Among them those with a password, which lists of processes would show."""
    with pytest.raises(InvalidRequestError, match="--url"):
        MetricsSource(url, None)


def test_servers_that_are_not_there_or_others_are_named():
    """Nothing listens; a page of another program; a redirect, which is not followed, for the key would go with it."""
    with pytest.raises(ScrapeError, match=r"127\.0\.0\.1:1 cannot be reached"):
        MetricsSource("127.0.0.1:1", None).read()
    with answering(200, b"<html>hello</html>") as (url, _), pytest.raises(ScrapeError, match="no sample"):
        MetricsSource(url, None).read()
    with answering(500, b"oops") as (url, _), pytest.raises(ScrapeError, match="status 500: no reason given"):
        MetricsSource(url, None).read()
    with answering(200, b"") as (other, seen), answering(302, b"", [("location", f"{other}/metrics")]) as (url, _):
        with pytest.raises(ScrapeError, match="status 302"):
            MetricsSource(url, "a-secret-key").read()
        assert seen == []


def test_server_without_a_model_yet_is_shown():
    """Its metrics are empty."""
    with answering(200, b"") as (url, _):
        assert run_top("--url", url, "--once", "--refresh", "0.1").stdout.startswith("no model yet at")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_ctrl_c_brings_the_screen_back(served, start_top):
    """On a terminal it draws over itself on the other screen; SIGINT ends it with 130, without a traceback."""
    import pty

    ours, theirs = pty.openpty()
    process = start_top("--url", served.url, "--refresh", "0.1", key=served.key, stdout=theirs)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 30
    while shown.count(b"smollm2-135m-instruct at") < 2 and time.monotonic() < deadline:
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # Linux's word for the end of a pseudo-terminal
            break
        if not more:
            break
        shown += more
    _, complaints = process.communicate(timeout=10)
    os.close(ours)
    assert process.returncode == 130
    assert complaints == b""
    assert shown.startswith(b"\x1b[?1049h\x1b[?25l")
    assert shown.endswith(b"\x1b[?25h\x1b[?1049l")


def test_lines_of_json_go_on_until_interrupted(served, start_top):
    """One per reading, each whole."""
    process = start_top("--json", "--url", served.url, "--refresh", "0.1", key=served.key, stdout=subprocess.PIPE)
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=10)
    assert complaints == b""
    rates = [line["generated_per_s"] for line in lines]
    assert [rate is None for rate in rates] == [True, False, False]
