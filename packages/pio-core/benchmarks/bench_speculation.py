"""Decoding with and without speculation by prompt lookup: tokens per second, acceptance, and the same greedy text.

    python benchmarks/bench_speculation.py [--rounds 5] [--quick] [--json FILE]

Two texts: one that is mostly copied from the prompt, and one that is written freely, each for one request and for
eight at once. Both sides are loaded in this process with the same weights and take turns, so what is stated is the
ratio of neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from inference_pio.core import LLM, SamplingParams

BATCHES = (1, 8)
NOTES = (
    "The harbour office opens at {hour} in the morning and closes at noon on Saturdays. "
    "Boats longer than twelve metres pay forty crowns a night, shorter ones pay twenty-five. "
    "Water and electricity are included, and the showers take coins that the office sells. "
    "In case of a storm warning all boats on the outer pier move to the inner basin at once. "
)
TASKS = {
    "copying": "Repeat the following text word for word, and add nothing.\n\n" + NOTES,
    "writing": "Write a story about a lighthouse keeper who waited {hour} years for a letter.",
}


class Run(NamedTuple):
    """One side of one round."""

    speed: float
    texts: list[list[int]]


def prompts(task: str, batch: int) -> list[list[dict[str, str]]]:
    """As many conversations, no two alike."""
    hours = ("five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return [[{"role": "user", "content": TASKS[task].format(hour=hours[index])}] for index in range(batch)]


def decode(llm: LLM, task: str, batch: int, count: int) -> Run:
    """Tokens per second from the call to the last token, and the tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    started = time.perf_counter()
    outputs = llm.chat(prompts(task, batch), params)
    seconds = time.perf_counter() - started
    return Run(batch * count / seconds, [list(output.outputs[0].token_ids) for output in outputs])


def measure(plain: LLM, drafted: LLM, task: str, batch: int, *, rounds: int, count: int) -> dict[str, object]:
    """The two sides in turns, after one of each to warm up."""
    ratios, speeds, same = [], [], True
    for turn in range(rounds + 1):
        first, second = (plain, drafted) if turn % 2 else (drafted, plain)
        results = {id(llm): decode(llm, task, batch, count) for llm in (first, second)}
        without, with_drafts = results[id(plain)], results[id(drafted)]
        same = same and without.texts == with_drafts.texts
        if turn:
            ratios.append(with_drafts.speed / without.speed)
            speeds.append(with_drafts.speed)
    return {
        "name": f"{task}, batch {batch}",
        "value": round(statistics.median(ratios), 2),
        "unit": "ratio",
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
        "tokens_per_s": round(statistics.median(speeds), 1),
        "same_text": same,
    }


def acceptance(llm: LLM, before: tuple[float, float]) -> tuple[float | None, tuple[float, float]]:
    """Share of drafted tokens that were accepted since ``before``, and the counters now."""
    now = (llm.metrics.draft_tokens.total, llm.metrics.accepted_tokens.total)
    drafted = now[0] - before[0]
    return (round((now[1] - before[1]) / drafted, 2) if drafted else None), now


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of short texts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds, count = (2, 32) if arguments.quick else (arguments.rounds, 128)
    results: list[dict[str, object]] = []
    counters = (0.0, 0.0)
    with (
        LLM(enable_prefix_caching=False) as plain,
        LLM(enable_prefix_caching=False, speculative="ngram", num_speculative_tokens=6) as drafted,
    ):
        print(f"{'task':<20} {'ratio':>6} {'spread':>14} {'tokens/s':>9} {'accepted':>9}  same text")
        for task in TASKS:
            for batch in BATCHES:
                row = measure(plain, drafted, task, batch, rounds=rounds, count=count)
                row["acceptance"], counters = acceptance(drafted, counters)
                results.append(row)
                print(
                    f"{row['name']:<20} {row['value']:>6} {row['min']:>6} .. {row['max']:>4} "
                    f"{row['tokens_per_s']:>9} {row['acceptance']!s:>9}  {row['same_text']}"
                )
    machine = {"cpu": platform.machine(), "cores": os.cpu_count()}
    line = json.dumps({"benchmark": "speculation", "package": "pio-core", "results": results, "machine": machine})
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
