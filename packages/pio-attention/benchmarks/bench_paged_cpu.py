"""Time per layer of ragged paged batches on a CPU: pieces as planned, beside copying every sequence's pages.

python benchmarks/bench_paged_cpu.py [--json FILE] [--quick] [--threads N] [--sizes]

Prints a table in microseconds (medians) and one JSON line last. Every contender of a case runs in turn, round after
round in random order, so that noise hits all alike.

- floor: nothing but one SDPA call per sequence, on keys that lie ready in one tensor each;
- gather: every sequence's pages copied into one tensor, then SDPA, sequence by sequence;
- planned: ``SDPAAttention.attend_cached``, of which ``plan`` is the part that is done once per step for all layers;
- no cascade: the same, blind for shared prefixes (each sequence has its own copy of the prefix).

``% of read limit`` compares the bytes of the keys and values that must be read once (a shared prefix counts once) with
what the machine reads per second at best; above 100 they came from a processor cache. ``--sizes`` sweeps the sizes from
which on pages are read in place, and up to which they are copied together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch.nn.functional import scaled_dot_product_attention

from inference_pio.attention import PagedKVCache, SDPAAttention, _row_attention, make_batch
from inference_pio.attention._row_plan import Limits
from inference_pio.attention._sdpa import _attend
from inference_pio.interfaces import AttentionSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from inference_pio.attention._layer_pages import LayerPages
    from inference_pio.interfaces import RaggedBatch

    Contenders = dict[str, Callable[[], object]]

SHAPES = {"SmolLM2-135M": (9, 3, 64), "Qwen3-0.6B": (16, 8, 128)}
DTYPES = (torch.float32, torch.bfloat16)
PAGE = 16


@dataclass(frozen=True)
class Case:
    """A step: queries and length of each sequence, its pages, and the same with nothing shared."""

    name: str
    queries: list[int]
    lengths: list[int]
    tables: list[list[int]]
    tables_apart: list[list[int]] | None = None


def medians(contenders: Contenders, seconds: float) -> dict[str, float]:
    """Median microseconds of each contender, run in turn until the time is used up, at least 7 times."""
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 7:
        random.shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def read_limit() -> float:
    """Bytes per second that the threads read from memory."""
    data = torch.ones(1 << 26)  # 256 MiB
    times = []
    for _ in range(15):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return data.nbytes / min(times)


def cases(*, quick: bool) -> list[Case]:
    """Decode of 32 sequences in several layouts, a chunk after a prefix hit, and a prefix that 32 sequences share."""
    count, length = 32, 400
    per = length // PAGE
    one_run = [list(range(per * i, per * i + per)) for i in range(count)]
    shuffled = torch.randperm(per * count, generator=torch.Generator().manual_seed(0)).tolist()
    scattered = [shuffled[per * i : per * i + per] for i in range(count)]
    grown = [[*range(20 * i, 20 * i + 20), *(640 + count * j + i for j in range(per - 20))] for i in range(count)]
    prefix = list(range(64))
    shared = [[*prefix, *range(64 + 4 * i, 68 + 4 * i)] for i in range(count)]
    apart = [list(range(68 * i, 68 * i + 68)) for i in range(count)]
    drafts = [5] * count
    found = [
        Case("decode 32 x 400, one run each", [1] * count, [length] * count, one_run),
        Case("decode 32 x 400, prompt and single pages", [1] * count, [length] * count, grown),
        Case("decode 32 x 400, scattered", [1] * count, [length] * count, scattered),
        Case("decode 32 after a shared prefix of 1024", [1] * count, [1080] * count, shared, apart),
    ]
    if not quick:
        found += [
            Case("verify 5 of 32 x 400, scattered", drafts, [length] * count, scattered),
            Case("chunk of 512 after a prefix hit of 1024", [512], [1536], [shuffled[:96]]),
            Case("decode 1 x 4096, one run", [1], [4096], [list(range(256))]),
            Case("decode 32 x 40, scattered", [1] * count, [40] * count, [table[:3] for table in scattered]),
        ]
    return found


def fill(layer: LayerPages) -> None:
    """Random keys and values in every page."""
    layer.key_pages.copy_(torch.randn(layer.key_pages.shape[1:]).expand_as(layer.key_pages))
    layer.value_pages.copy_(torch.randn(layer.value_pages.shape[1:]).expand_as(layer.value_pages))


def gather(q: Tensor, layer: LayerPages, batch: RaggedBatch, spec: AttentionSpec) -> Tensor:
    """Each sequence's pages copied, then attended to."""
    parts = []
    for index, queries in enumerate(q.split_with_sizes(batch.query_lens)):
        length = batch.seq_lens[index]
        pages = batch.block_tables[index, : -(-length // PAGE)]
        keys, values = layer.gather_pages(pages)
        parts.append(_attend(queries, keys[:length], values[:length], spec))
    return torch.cat(parts)


def floor(q: Tensor, case: Case, spec: AttentionSpec) -> Callable[[], object]:
    """One SDPA call per sequence of one row, nothing else."""
    group = spec.num_heads // spec.num_kv_heads
    ready = [
        [torch.randn(length, spec.num_kv_heads, spec.head_dim).to(q.dtype).transpose(0, 1)[None] for _ in "kv"]
        for length in case.lengths
    ]
    rows = [row.view(1, spec.num_kv_heads, group, spec.head_dim) for row in q]

    def run() -> None:
        for row, (keys, values) in zip(rows, ready, strict=True):
            scaled_dot_product_attention(row, keys, values)

    return run


def contenders(case: Case, spec: AttentionSpec, dtype: torch.dtype) -> tuple[Contenders, int]:
    """What is compared, and the bytes that must be read."""
    tables = case.tables_apart or case.tables
    num_pages = 1 + max(page for table in tables + case.tables for page in table)
    layer = PagedKVCache([spec], num_pages=num_pages, page_size=PAGE, dtype=dtype).layer(0)
    fill(layer)
    q = torch.randn(sum(case.queries), spec.num_heads, spec.head_dim).to(dtype)
    batch = make_batch(case.queries, case.lengths, case.tables, page_size=PAGE)
    backend = SDPAAttention()

    def plan() -> None:
        layer.layout._batch = None
        _row_attention.find_plan(q, layer, batch, spec)

    found: Contenders = {
        "gather": lambda: gather(q, layer, batch, spec),
        "planned": lambda: backend.attend_cached(q, layer, batch, spec),
    }
    if set(case.queries) == {1}:
        found["floor"] = floor(q, case, spec)
    if case.tables_apart is not None:
        apart = PagedKVCache([spec], num_pages=num_pages, page_size=PAGE, dtype=dtype).layer(0)
        fill(apart)
        other = make_batch(case.queries, case.lengths, case.tables_apart, page_size=PAGE)
        found["no cascade"] = lambda: backend.attend_cached(q, apart, other, spec)
    found["plan"] = plan
    distinct = len({page for table in case.tables for page in table})
    return found, distinct * PAGE * 2 * spec.num_kv_heads * spec.head_dim * dtype.itemsize


def sweep(seconds: float) -> None:
    """Medians over both sizes for the cases where they matter."""
    for shape, (heads, kv_heads, head_dim) in SHAPES.items():
        spec = AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
        for dtype in DTYPES:
            for case in cases(quick=True)[1:]:
                runs: Contenders = {}
                for view in (16, 64, 128, 256, 1 << 40):
                    for block in (512, 2048, 8192):
                        with mock.patch.object(
                            _row_attention,
                            "_LIMITS",
                            Limits(view=min(view, 128), view_half=view, block=block << 10)
                            if dtype.itemsize == 2
                            else Limits(view=view, block=block << 10),
                        ):
                            made = contenders(case, spec, dtype)[0]
                            made["planned"]()  # the plan is made and kept while these sizes hold
                        runs[f"{view if view < 1 << 40 else 'never'}/{block}"] = made["planned"]
                times = sorted(medians(runs, seconds).items(), key=lambda item: item[1])
                line = "  ".join(f"{name}: {value:.0f}" for name, value in times)
                print(
                    f"{shape} {str(dtype).removeprefix('torch.')} {case.name} (view tokens / block KiB)\n  {line}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--quick", action="store_true", help="fewer cases, less time each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", action="store_true", help="sweep the sizes of pieces instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    seconds = 0.3 if arguments.quick else 1.0
    if arguments.sizes:
        with torch.inference_mode():
            sweep(seconds)
        return
    limit = read_limit()
    print(f"{arguments.threads} threads, reading {limit / 1e9:.1f} GB/s")
    names = ("floor", "gather", "planned", "no cascade", "plan")
    header = "".join(f"{name:>12}" for name in names)
    print(f"{'microseconds per layer':<68}{header}{'gather / planned':>18}{'% of read limit':>17}")
    results = []
    for shape, (heads, kv_heads, head_dim) in SHAPES.items():
        for dtype in DTYPES:
            spec = AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
            for case in cases(quick=arguments.quick):
                with torch.inference_mode():
                    runs, touched = contenders(case, spec, dtype)
                    times = medians(runs, seconds)
                share = 100 * touched / (times["planned"] / 1e6) / limit
                name = f"{shape} {str(dtype).removeprefix('torch.')} {case.name}"
                columns = "".join(f"{times[n]:>12.0f}" if n in times else f"{'-':>12}" for n in names)
                ratio = times["gather"] / times["planned"]
                print(f"{name:<68}{columns}{ratio:>18.2f}{share:>17.0f}", flush=True)
                results += [
                    {"name": f"{name} / {contender}", "value": round(value, 2), "unit": "us"}
                    for contender, value in times.items()
                ]
                results.append({"name": f"{name} / share of read limit", "value": round(share, 1), "unit": "%"})
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": arguments.threads,
        "read_bytes_per_s": round(limit),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    report = {"benchmark": "paged_cpu", "package": "pio-attention", "results": results, "machine": machine}
    line = json.dumps(report)
    if arguments.json:
        arguments.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
