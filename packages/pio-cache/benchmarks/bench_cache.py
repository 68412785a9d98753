"""What bookkeeping costs per sequence, and how much memory it wastes.

    python benchmarks/bench_cache.py [--json FILE] [--quick]

Times are medians over rounds, in microseconds per call, for pages of 16 tokens. Waste is the share of allocated slots
that hold no token, over all steps of a mixed load: prompts and outputs of random lengths that come and go.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.cache import CacheManager
from inference_pio.interfaces import CacheGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.cache import SequencePages

PAGE = 16
PROMPT = 512
Result = dict[str, str | float]


def timed(call: Callable[[], object], count: int) -> float:
    """Microseconds per sequence of one round."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) / count * 1e6


def cost(num_seqs: int, rounds: int) -> list[Result]:
    """Time per call with ``num_seqs`` running sequences."""
    draw = random.Random(0)  # noqa: S311 - a load, not a secret
    manager = CacheManager([CacheGroup(kind="full", num_pages=num_seqs * 160)], page_size=PAGE)
    prompts = [[draw.randrange(50_000) for _ in range(PROMPT)] for _ in range(num_seqs)]
    times: dict[str, list[float]] = {}

    def note(name: str, call: Callable[[], object]) -> None:
        times.setdefault(name, []).append(timed(call, num_seqs))

    for _ in range(rounds):
        manager.clear()
        seqs = [manager.open(list(prompt)) for prompt in prompts]
        note(f"lookup, {PROMPT} tokens, first", lambda seqs=seqs: [manager.lookup(seq) for seq in seqs])
        note(f"lookup, {PROMPT} tokens, again", lambda seqs=seqs: [manager.lookup(seq) for seq in seqs])
        note(
            f"admit, {PROMPT} tokens, miss",
            lambda seqs=seqs: [manager.admit(seq, PROMPT, expected=768) for seq in seqs],
        )
        note(f"commit, {PROMPT} tokens", lambda seqs=seqs: [manager.commit(seq, PROMPT) for seq in seqs])
        steps = [decode(manager, seqs, num_seqs) for _ in range(8 * PAGE)]
        grows, commits = zip(*steps, strict=True)
        times.setdefault("grow, within a page", []).append(statistics.median(grows))
        times.setdefault("grow, new page", []).append(statistics.median(grows[::PAGE]))
        times.setdefault("commit, within a page", []).append(statistics.median(commits))
        times.setdefault("commit, full page", []).append(statistics.median(commits[PAGE - 1 :: PAGE]))
        times.setdefault("grow + commit, mean", []).append(sum(grows + commits) / len(steps))
        note("release", lambda seqs=seqs: [manager.release(seq) for seq in seqs])
        again = [manager.open(list(prompt)) for prompt in prompts]
        for seq in again:
            manager.lookup(seq)
        note(
            f"admit, {PROMPT} tokens, hit",
            lambda seqs=again: [manager.admit(seq, PROMPT, expected=768) for seq in seqs],
        )
        for seq in again:
            manager.release(seq)
    return [
        {"name": f"{name}, {num_seqs} sequences", "value": round(statistics.median(values), 2), "unit": "us"}
        for name, values in times.items()
    ]


def decode(manager: CacheManager, seqs: list[SequencePages], num_seqs: int) -> tuple[float, float]:
    """One decode step: time of ``grow`` and of ``commit``."""
    end = seqs[0].num_computed + 1
    for seq in seqs:
        seq.tokens.append(end)
    grow = timed(lambda: [manager.grow(seq, end) for seq in seqs], num_seqs)
    return grow, timed(lambda: [manager.commit(seq, end) for seq in seqs], num_seqs)


class MixedLoad:
    """Sequences that come and go; each outgrows what was expected, or falls short of it."""

    def __init__(self, *, prefix_caching: bool, max_num_seqs: int = 32, budget: int = 512) -> None:
        self.draw = random.Random(1)  # noqa: S311 - a load, not a secret
        self.manager = CacheManager(
            [CacheGroup(kind="full", num_pages=2048)], page_size=PAGE, prefix_caching=prefix_caching
        )
        self.max_num_seqs = max_num_seqs
        self.budget = budget
        self.system = [[self.draw.randrange(50_000) for _ in range(200)] for _ in range(4)]
        self.running: list[tuple[SequencePages, int]] = []
        self.samples: list[dict[str, int]] = []

    def arrive(self) -> bool:
        """Admit one more, with one of four system prompts or none."""
        tokens = list(self.draw.choice([*self.system, [], []]))
        tokens += [self.draw.randrange(50_000) for _ in range(self.draw.randint(64, 512))]
        output = self.draw.randint(16, 256)
        seq = self.manager.open(tokens)
        if not self.manager.admit(seq, len(tokens), expected=len(tokens) + 128):
            return False
        self.running.append((seq, len(tokens) + output))
        return True

    def step(self) -> None:
        """Admit, compute a chunk or one token of each within the budget, and let those go that are done."""
        if len(self.running) < self.max_num_seqs and self.draw.random() < 0.5:
            self.arrive()
        left = self.budget
        for seq, _ in self.running:
            end = min(len(seq.tokens), seq.num_computed + left)
            left -= end - seq.num_computed
            if not self.manager.grow(seq, end):
                self.manager.release(seq)
                continue
            self.manager.commit(seq, end)
            if end == len(seq.tokens):
                seq.tokens.append(self.draw.randrange(50_000))
        self.sample()
        for seq, length in self.running:
            if len(seq.tokens) >= length:
                self.manager.release(seq)
        self.running = [(seq, length) for seq, length in self.running if seq.admitted]

    def sample(self) -> None:
        """Count slots: shared pages once."""
        tables = [(seq, seq.tables[0]) for seq, _ in self.running if seq.admitted]
        owned = {page for _, table in tables for page in table}
        filled: dict[int, int] = {}
        for seq, table in tables:
            for number, page in enumerate(table):
                filled[page] = min(PAGE, max(0, seq.num_computed - number * PAGE))
        started = [page for page in owned if filled[page]]
        runs = sum(1 + sum(b != a + 1 for a, b in pairwise(table)) for _, table in tables if table)
        self.samples.append(
            {
                "slots": len(owned) * PAGE,
                "tokens": sum(filled.values()),
                "started": len(started) * PAGE,
                "pages": sum(len(table) for _, table in tables),
                "runs": runs,
                "whole": sum(table == list(range(table[0], table[0] + len(table))) for _, table in tables if table),
                "sequences": len(tables),
                "aside": PAGE * sum(s.spares[0].stop - s.spares[0].start for s, _ in tables),
            }
        )


def waste(steps: int, *, prefix_caching: bool) -> list[Result]:
    """The share of slots without a token, and how far sequences lie in one piece."""
    load = MixedLoad(prefix_caching=prefix_caching)
    for _ in range(steps):
        load.step()
    warm = load.samples[steps // 5 :]
    total = {key: sum(sample[key] for sample in warm) for key in warm[0]}
    tag = "prefixes cached" if prefix_caching else "no prefix caching"
    figures = {
        "tokens found in the cache": (load.manager.stats.hits / max(1, load.manager.stats.queries), "share"),
        "waste, last pages only": (1 - total["tokens"] / total["started"], "share"),
        "waste, pages of prompts still to be computed as well": (1 - total["tokens"] / total["slots"], "share"),
        "set aside, free for others": (total["aside"] / (total["slots"] + total["aside"]), "share"),
        "pages per run": (total["pages"] / total["runs"], "pages"),
        "runs per sequence": (total["runs"] / total["sequences"], "runs"),
        "sequences in one run": (total["whole"] / total["sequences"], "share"),
        "tokens per sequence": (total["tokens"] / total["sequences"], "tokens"),
    }
    load.manager.check()
    return [
        {"name": f"{name}, {tag}", "value": round(value, 4), "unit": unit} for name, (value, unit) in figures.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs")
    options = parser.parse_args()
    results = []
    for num_seqs in (16, 256) if options.quick else (16, 64, 256, 1024):
        results += cost(num_seqs, 1 if options.quick else 5)
    for prefix_caching in (False, True):
        results += waste(200 if options.quick else 6000, prefix_caching=prefix_caching)
    for result in results:
        print(f"{result['name']:<72} {result['value']:>10} {result['unit']}")
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    line = json.dumps({"benchmark": "cache", "package": "pio-cache", "results": results, "machine": machine})
    print(line)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
