"""Sampling on the host and in torch against transformers' warpers with ``torch.multinomial``, interleaved.

    python benchmarks/bench_sampler.py [--rounds 5] [--threads 1] [--quick] [--json FILE]

All sides draw one token for each row of the same logits, with the same parameters for all rows, since that is all the
warpers can. The logits are normal with a tail like a language model's: a few likely tokens over a wide floor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.generation import logits_process as process

from inference_pio.core._host_sampler import HostSampler
from inference_pio.core._sampler_state import SamplerState
from inference_pio.core._sampling_batch import SamplingRow, sampling_batch
from inference_pio.core.torch_sampler import TorchSampler
from inference_pio.interfaces import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

KINDS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k + top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.1},
}
HISTORY = 512


def make_logits(rows: int, vocab_size: int) -> NDArray[np.float32]:
    """Logits (R, V) with an entropy of a few nats."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=1.5, size=(rows, vocab_size)).astype(np.float32)
    likely = rng.integers(0, vocab_size, size=(rows, 64))
    np.put_along_axis(logits, likely, rng.gumbel(9.0, 2.0, size=(rows, 64)).astype(np.float32), axis=1)
    return logits


def warpers(params: dict[str, float]) -> process.LogitsProcessorList:
    """What transformers runs for ``params``."""
    chain = process.LogitsProcessorList()
    if "repetition_penalty" in params:
        chain.append(process.RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    if params["temperature"] > 0.0:
        chain.append(process.TemperatureLogitsWarper(params["temperature"]))
    if "top_k" in params:
        chain.append(process.TopKLogitsWarper(int(params["top_k"])))
    if "top_p" in params:
        chain.append(process.TopPLogitsWarper(params["top_p"]))
    return chain


def sides(kind: str, logits: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """The runs to be compared, by name, and the making of the arrays alone."""
    params, (rows, vocab_size) = KINDS[kind], logits.shape
    tensor = torch.from_numpy(logits)
    history = np.random.default_rng(1).integers(0, vocab_size, size=(rows, HISTORY))
    sampling = SamplingParams(seed=0, **params)  # type: ignore[arg-type]  # KINDS names real parameters
    states = [SamplerState(sampling, tokens.tolist(), index=row, end_ids=()) for row, tokens in enumerate(history)]
    plan = [SamplingRow(row, state) for row, state in enumerate(states)]
    ids, chain = torch.from_numpy(history), warpers(params)
    host, device = HostSampler(), TorchSampler("cpu")

    def theirs() -> torch.Tensor:
        scores = chain(ids, tensor)
        if params["temperature"] == 0.0:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1)

    return {
        "host": lambda: host.sample(logits, sampling_batch(plan, vocab_size=vocab_size)),
        "torch": lambda: device.sample(tensor, sampling_batch(plan, vocab_size=vocab_size)),
        "transformers": theirs,
        "arrays alone": lambda: sampling_batch(plan, vocab_size=vocab_size),
    }


def measure(kind: str, rows: int, vocab_size: int, rounds: int) -> list[dict[str, object]]:
    """Median milliseconds per row of each side, in rounds that alternate their order, and the median of ratios."""
    runs = sides(kind, make_logits(rows, vocab_size))
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: 1 if index % 2 == 0 else -1]:
            started = time.perf_counter()
            runs[name]()
            times[name].append(1e3 * (time.perf_counter() - started) / rows)
    case = {"kind": kind, "rows": rows, "vocab_size": vocab_size}
    results: list[dict[str, object]] = [
        {"name": name, **case, "value": round(statistics.median(each), 5), "unit": "ms/row"}
        for name, each in times.items()
    ]
    for name in ("host", "torch"):
        ratios = [other / ours for ours, other in zip(times[name], times["transformers"], strict=True)]
        ratio = round(statistics.median(ratios), 2)
        results.append({"name": f"{name}, times as fast as transformers", **case, "value": ratio, "unit": "x"})
    return results


def main() -> None:
    """Run, print a table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch; NumPy's sampler uses one")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, help="also write the JSON object here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    vocabularies, batches = ((1000,), (1, 8)) if arguments.quick else ((49_152, 151_936), (1, 32, 256))
    rounds = 2 if arguments.quick else arguments.rounds
    results = []
    print(f"{'V':>7} {'R':>4}  {'kind':14} {'host':>9} {'torch':>9} {'transf.':>9} {'arrays':>9}  ratios")
    for vocab_size in vocabularies:
        for rows in batches:
            for kind in KINDS:
                found = measure(kind, rows, vocab_size, rounds)
                results += found
                values = [found[place]["value"] for place in range(6)]
                print(
                    f"{vocab_size:7} {rows:4}  {kind:14} "
                    + " ".join(f"{value:9.4f}" for value in values[:4])
                    + "  "
                    + " ".join(f"{value:.1f}x" for value in values[4:])
                )
    report = {
        "benchmark": "sampler",
        "package": "pio-core",
        "settings": {"rounds": rounds, "threads": arguments.threads, "history": HISTORY},
        "results": results,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
