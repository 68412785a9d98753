"""Speed of a model's forward alone: prefill and decode, beside what the machine's memory allows.

Decode reads every weight once per token, so its limit is the memory bandwidth, measured here on the same threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inference_pio.attention import kv_bytes, ragged_batch
from inference_pio.testing._load import load_model
from inference_pio.testing._run import contiguous_cache, random_tokens, step_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference_pio.interfaces import ModelPlugin
    from inference_pio.testing._load import LoadedModel

PREFILL_TOKENS = 128
_BANDWIDTH_BYTES = 1 << 28


def forward_benchmark(
    plugin: ModelPlugin[Any],
    package: str,
    make_checkpoint: Callable[[bool], Path],
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
) -> None:
    """The command line of a model's ``bench_forward.py``: a table for people, then one line of JSON.

    Args:
        plugin: The family's plugin.
        package: Distribution that is measured.
        make_checkpoint: Gives the checkpoint to measure; told whether a quick run is wanted.
        dtypes: Names of the dtypes to measure.
    """
    parser = argparse.ArgumentParser(description=f"Prefill and decode speed of {package}.")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--quick", action="store_true", help="a tiny checkpoint and few repeats")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = make_checkpoint(options.quick)
    bandwidth = measure_bandwidth(repeats=3 if options.quick else 9)
    results: list[dict[str, object]] = [{"name": "memory read", "value": bandwidth / 1e9, "unit": "GB/s"}]
    for dtype in dtypes:
        results += measure_forward(
            load_model(plugin, path, dtype=dtype), dtype, bandwidth, repeats=3 if options.quick else 15
        )
    _print(results)
    record = json.dumps({"benchmark": "forward", "package": package, "results": results, "machine": describe_machine()})
    if options.json is not None:
        options.json.write_text(record + "\n", encoding="utf-8")
    print(record)  # noqa: T201 - the benchmark's output


def measure_forward(loaded: LoadedModel, label: str, bandwidth: float, *, repeats: int) -> list[dict[str, object]]:
    """Median speed of prefill and of decode at batch 1 behind it, in tokens per second.

    Args:
        loaded: The model.
        label: What to call it in the results.
        bandwidth: Bytes per second that the machine reads.
        repeats: Prefills, and decode steps after each of a handful.
    """
    prefills, steps = [], []
    for _ in range(max(2, repeats // 3)):
        prefill, decode = _one_run(loaded, steps=repeats)
        prefills.append(prefill)
        steps += decode
    prefill_rate, decode_rate = PREFILL_TOKENS / statistics.median(prefills), 1 / statistics.median(steps)
    bytes_per_token = read_bytes_per_token(loaded, PREFILL_TOKENS)
    return [
        {
            "name": f"{label}: prefill {PREFILL_TOKENS}",
            "value": prefill_rate,
            "unit": "tokens/s",
            "flops_per_token": 2 * matrix_parameters(loaded),
            "gflops": 2 * matrix_parameters(loaded) * prefill_rate / 1e9,
        },
        {
            "name": f"{label}: decode, batch 1",
            "value": decode_rate,
            "unit": "tokens/s",
            "bytes_per_token": bytes_per_token,
            "bandwidth_percent": 100 * bytes_per_token * decode_rate / bandwidth,
        },
    ]


def matrix_parameters(loaded: LoadedModel) -> int:
    """Parameters that multiply a token's activations: all matrices, without the look-up of an untied embedding."""
    total = sum(parameter.numel() for parameter in loaded.module.parameters() if parameter.ndim > 1)
    looked_up = 0 if loaded.tied_head else loaded.shape.vocab_size * loaded.shape.hidden_size
    return total - looked_up


def read_bytes_per_token(loaded: LoadedModel, context: int) -> int:
    """Bytes that one decode step at batch 1 must read: the matrices, and keys and values of ``context`` tokens."""
    return matrix_parameters(loaded) * loaded.dtype.itemsize + kv_bytes(loaded.shape.attention, context, loaded.dtype)


def measure_bandwidth(*, repeats: int) -> float:
    """Bytes per second of reading a buffer far larger than the caches, on torch's threads; the best of ``repeats``."""
    buffer = torch.ones(_BANDWIDTH_BYTES // 4)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        buffer.sum()
        best = max(best, buffer.nbytes / (time.perf_counter() - start))
    return best


def describe_machine() -> dict[str, object]:
    """What a figure depends on besides the code."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _one_run(loaded: LoadedModel, *, steps: int) -> tuple[float, list[float]]:
    """Seconds of one prefill, and of each of ``steps`` decode steps after it; logits of the last row included."""
    length = PREFILL_TOKENS + steps
    ids = random_tokens(loaded, length)
    cache = contiguous_cache(loaded, num_sequences=1, max_length=length)
    seconds: list[float] = []
    for done, count in [(0, PREFILL_TOKENS), *((PREFILL_TOKENS + step, 1) for step in range(steps))]:
        step = step_batch([ids], [done], [count], [[0]], page_size=length)
        token_ids, positions = torch.from_numpy(step.token_ids), torch.from_numpy(step.positions)
        batch = ragged_batch(step, loaded.device)
        start = time.perf_counter()
        loaded.logits(loaded.hidden(token_ids, positions, cache, batch)[-1:])
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1:]


def _print(results: Sequence[dict[str, object]]) -> None:
    for result in results:
        extra = f"   {result['bandwidth_percent']:.0f} % of memory bandwidth" if "bandwidth_percent" in result else ""
        print(f"{result['name']:<28} {result['value']:>10.1f} {result['unit']}{extra}")  # noqa: T201 - as above
