"""Figures of load tests, against numbers worked out by hand and against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inference_pio.benchmarks._serve_load import Load
from inference_pio.benchmarks._serve_metrics import METRICS, measure_serving
from inference_pio.benchmarks._serve_report import result_block, to_measurements
from inference_pio.benchmarks._serve_timeline import Timeline


def test_figures_of_three_requests_by_hand(timeline):
    """Each definition once: tokens by usage, times by chunks, TPOT without the first token and single tokens."""
    runs = [
        timeline(10.0, 10.5, 10.75, 11.5, tokens=5, prompt_tokens=100),  # TTFT 500, E2EL 1500, TPOT 1000/4
        timeline(10.25, 10.5, 11.0, tokens=3, prompt_tokens=20),  # TTFT 250, E2EL 750, TPOT 500/2
        timeline(12.0, 12.125, tokens=1, prompt_tokens=3),  # TTFT 125, E2EL 125, no TPOT
    ]
    found = measure_serving(runs, 2.5, percentiles=(50, 90), objectives={"ttft": 300, "tpot": 250})
    assert (found.completed, found.failed, found.input_tokens, found.output_tokens) == (3, 0, 123, 9)
    assert found.request_throughput == pytest.approx(3 / 2.5)
    assert found.output_throughput == pytest.approx(9 / 2.5)
    assert found.total_throughput == pytest.approx(132 / 2.5)
    assert found.goodput == pytest.approx(2 / 2.5)  # the second just so, the third of one token
    ttft, tpot, itl, e2el = (found.distributions[name] for name in ("ttft", "tpot", "itl", "e2el"))
    assert (ttft.mean, ttft.median, ttft.count) == (pytest.approx(875 / 3), 250, 3)
    assert ttft.std == pytest.approx(math.sqrt(sum((each - 875 / 3) ** 2 for each in (500, 250, 125)) / 3))
    assert ttft.percentiles == {50: 250, 90: pytest.approx(250 + 0.8 * 250)}
    assert (tpot.mean, tpot.median, tpot.count) == (250, 250, 2)
    assert (itl.mean, itl.median, itl.count) == (500, 500, 3)
    assert (e2el.mean, e2el.count) == (pytest.approx(2375 / 3), 3)
    assert found.peak_concurrency == 2
    assert found.peak_output_throughput == 3  # at 0.5, 0.75 and 0.5 s


def test_peak_output_counts_chunks_by_whole_seconds(timeline):
    """Seconds from the start of the earliest request, whichever comes first in the list."""
    runs = [timeline(5.5, 6.0, 6.4, 6.6, tokens=30), timeline(5.0, 5.1, 6.1, tokens=2)]
    assert measure_serving(runs, 2.0).peak_output_throughput == 4  # 6.0, 6.4, 6.6 and 6.1


def test_requests_that_touch_do_not_overlap(timeline):
    """Half-open intervals: one ends as the next begins."""
    runs = [timeline(0.0, 0.5, 1.0), timeline(1.0, 1.5, 2.0), timeline(1.5, 1.75)]
    assert measure_serving(runs, 2.0).peak_concurrency == 2
    assert measure_serving(runs[:2], 2.0).peak_concurrency == 1


def test_distributions_are_those_of_numpy(timeline):
    """On random times: means, population deviations, interpolated percentiles."""
    generator = np.random.default_rng(7)
    runs = []
    for _ in range(57):
        start = float(generator.uniform(0, 5))
        chunks = start + np.cumsum(generator.exponential(0.1, size=int(generator.integers(1, 9))))
        runs.append(timeline(start, *chunks.tolist(), tokens=int(generator.integers(1, 20)), due=start - 0.25))
    found = measure_serving(runs, 6.0, percentiles=(0, 12.5, 99, 100))
    expected = {
        "ttft": [run.chunks[0] - run.start for run in runs],
        "tpot": [(run.chunks[-1] - run.chunks[0]) / (run.output_tokens - 1) for run in runs if run.output_tokens > 1],
        "itl": np.concatenate([np.diff(run.chunks) for run in runs]),
        "e2el": [run.chunks[-1] - run.start for run in runs],
        "client_queue_time": [0.25] * 57,
    }
    assert set(found.distributions) == set(METRICS) == set(expected)
    for name, values in expected.items():
        got, oracle = found.distributions[name], 1e3 * np.asarray(values)
        assert got.count == len(oracle)
        assert got.mean == pytest.approx(np.mean(oracle))
        assert got.median == pytest.approx(np.median(oracle))
        assert got.std == pytest.approx(np.std(oracle), abs=1e-9)
        for percent, value in got.percentiles.items():
            assert value == pytest.approx(np.percentile(oracle, percent))


def test_failed_and_running_requests_do_not_count(timeline):
    """Neither their tokens nor their times; running ones are not failures either."""
    runs = [timeline(0.0, 1.0, tokens=4), timeline(0.0, 9.0, tokens=50, state="failed"), Timeline(state="running")]
    runs[1].error = "gone"
    found = measure_serving(runs, 2.0, objectives={"e2el": 999.0})
    assert (found.completed, found.failed, found.output_tokens, found.goodput) == (1, 1, 4, 0.0)
    assert found.distributions["ttft"].mean == 1000


def test_nothing_completed_is_all_zero():
    """As in vLLM; and nothing of it becomes a measurement that a comparison could take for speed."""
    found = measure_serving([Timeline(state="failed", error="x")], 1.0)
    assert (found.completed, found.output_throughput, found.peak_concurrency) == (0, 0.0, 0)
    assert found.distributions["itl"].mean == 0
    assert not [each for each in to_measurements(found) if "TTFT" in each.name]
    with pytest.raises(ValueError, match="the duration must be positive, not 0"):
        measure_serving([], 0.0)


@pytest.mark.parametrize(("tokens", "length"), [(7, 7), (None, 2), (0, 2)])
def test_tokens_are_those_of_usage_else_chunks_with_text(timeline, tokens, length):
    """Where the server does not tell, chunks without text are no tokens."""
    run = timeline(0.0, 1.0, 2.0, tokens=tokens)
    run.note_chunk(3.0, text=False)
    assert run.length == length
    assert run.latency == 3.0


def test_opening_chunks_can_be_left_out(timeline):
    """Those before the first text, and no others."""
    run = Timeline(start=1.0)
    for at, text in ((1.1, False), (1.5, True), (1.6, False), (1.75, True)):
        run.note_chunk(at, text=text)
    assert run.ttft == pytest.approx(0.1)
    run.drop_opening()
    assert (run.ttft, run.chunks) == (0.5, [1.5, 1.6, 1.75])
    silent = Timeline(start=1.0, chunks=[1.5])
    silent.drop_opening()
    assert silent.chunks == [1.5]


BLOCK = """\
============ Serving Benchmark Result ============
Successful requests:                     1
Failed requests:                         1
Maximum request concurrency:             4
Request rate configured (RPS):           2.00
Benchmark duration (s):                  2.00
Total input tokens:                      10
Total generated tokens:                  3
Request throughput (req/s):              0.50
Request goodput (req/s):                 0.50
Output token throughput (tok/s):         1.50
Peak output token throughput (tok/s):    1.00
Peak concurrent requests:                1.00
Total token throughput (tok/s):          6.50
---------------Time to First Token----------------
Mean TTFT (ms):                          250.00
Median TTFT (ms):                        250.00
P99 TTFT (ms):                           250.00
P99.9 TTFT (ms):                         250.00
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          500.00
Median TPOT (ms):                        500.00
P99 TPOT (ms):                           500.00
P99.9 TPOT (ms):                         500.00
=================================================="""


def test_the_block_has_vllms_words(timeline):
    """Word for word, so that what reads vLLM's output reads ours."""
    runs = [timeline(0.0, 0.25, 1.25, tokens=3), Timeline(state="failed", error="x")]
    found = measure_serving(runs, 2.0, percentiles=(99, 99.9), objectives={"ttft": 250})
    assert result_block(found, Load(2.0, 1.0, 4), ("ttft", "tpot")) == BLOCK
    short = result_block(measure_serving(runs, 2.0), Load(), ())
    assert "concurrency:" not in short
    assert "RPS" not in short
    assert "goodput" not in short


def test_measurements_have_names_of_their_own(timeline):
    """Each figure once, latencies to fall and throughputs to rise; details only when asked for."""
    runs = [timeline(0.0, 0.25, 1.25, tokens=3), timeline(0.0, 0.5, 1.25, tokens=3)]
    found = measure_serving(runs, 2.0, percentiles=(50, 99), objectives={"ttft": 250})
    measurements = {each.name: each for each in to_measurements(found, runs)}
    assert len(measurements) == len(to_measurements(found, runs))
    assert measurements["p99 ITL"].better == "lower"
    assert measurements["goodput"].values == (0.5,)
    assert measurements["output throughput"].better == "higher"
    assert measurements["TTFT of each request"].values == (250, 500)
    assert not [name for name in (each.name for each in to_measurements(found)) if "of each" in name]
