"""Time per call of SDPA attention over our caches, beside transformers' SDPA path, interleaved in one process.

python benchmarks/bench_attention.py [--json FILE] [--quick] [--threads N]

Prints a table in microseconds (medians) and one JSON line last. Every contender of a case runs in turn, round after
round in random order, so that noise hits all alike. ``% of read limit`` compares the bytes of keys and values with what
the machine reads per second at best when it only sums a large tensor on the same threads; above 100 they came from a
processor cache.

The contenders:

- contiguous, paged, scattered: ``SDPAAttention`` over a contiguous cache, over pages side by side, over shuffled pages;
- hf sdpa: ``transformers.integrations.sdpa_attention`` on keys that lie ready, in transformers' layout, without a mask
  where it needs none (its best case) and with a mask elsewhere;
- repeat_kv + mask: SDPA after repeating the KV heads, with an explicit mask, as older versions did;
- for "step" also the storing of the new token: our ``write``, transformers' ``DynamicCache.update``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from inference_pio.attention import Attention, ContiguousKVCache, PagedKVCache, SDPAAttention, make_batch
from inference_pio.interfaces import AttentionSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from inference_pio.interfaces import KVCache

    Contenders = dict[str, Callable[[], object]]

SHAPES = {"SmolLM2-135M": (9, 3, 64), "Qwen3-0.6B": (16, 8, 128)}
DTYPES = (torch.float32, torch.bfloat16)
PAGE = 16


def medians(contenders: Contenders, seconds: float) -> dict[str, float]:
    """Median microseconds of each contender, run in turn until the time is used up, at least 7 times."""
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 7:
        random.shuffle(order)  # whoever follows a contender that empties the processor's cache pays for it
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
    return data.nbytes / min(times)  # a limit: what disturbs it only makes it lower


def our_contenders(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, *, step: bool) -> Contenders:
    """Our attention over the three layouts; with ``step`` the queries' own keys are stored in every call."""
    num_queries, length, dtype = q.shape[0], k.shape[0], q.dtype
    pages = -(-length // PAGE)
    shuffled = random.Random(0).sample(range(pages), pages)  # noqa: S311 - a fixed layout, no secret
    paged = [PagedKVCache([spec], num_pages=pages, page_size=PAGE, dtype=dtype) for _ in range(2)]
    layouts: dict[str, tuple[KVCache, list[int]]] = {
        "contiguous": (ContiguousKVCache([spec], num_sequences=1, max_length=length, dtype=dtype), [0]),
        "paged": (paged[0], list(range(pages))),
        "scattered": (paged[1], shuffled),
    }
    backend = SDPAAttention()
    layer = Attention(spec, layer=0, backend=backend)
    contenders: Contenders = {}
    for name, (cache, table) in layouts.items():
        whole = make_batch([length], [length], [table], page_size=cache.page_size)
        cache.layer(0).write(k, v, whole.slot_mapping)
        batch = make_batch([num_queries], [length], [table], page_size=cache.page_size)
        new = (k[-num_queries:], v[-num_queries:])
        if step:
            contenders[name] = lambda cache=cache, batch=batch, new=new: layer(q, *new, cache, batch)
        else:
            contenders[name] = lambda cache=cache, batch=batch: backend.attend_cached(q, cache.layer(0), batch, spec)
    return contenders


def their_contenders(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, *, step: bool) -> Contenders:
    """The path of transformers, if it is installed, and repeat_kv with a mask."""
    num_queries, length, group = q.shape[0], k.shape[0], spec.num_heads // spec.num_kv_heads
    queries, keys, values = (x.transpose(0, 1).unsqueeze(0).contiguous() for x in (q, k, v))
    distance = torch.arange(length - num_queries, length).unsqueeze(1) - torch.arange(length)
    seen = (distance >= 0) & (distance < (spec.window or length))
    mask = None if spec.window is None and num_queries in (1, length) else seen[None, None]

    def repeated() -> Tensor:
        expanded = (x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (keys, values))
        return scaled_dot_product_attention(queries, *expanded, attn_mask=seen)

    try:
        from transformers.cache_utils import DynamicCache
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
    except ModuleNotFoundError:
        return {} if step else {"repeat_kv + mask": repeated}
    module = torch.nn.Module()
    module.num_key_value_groups = group  # type: ignore[assignment]  # what transformers reads of an attention module
    module.is_causal = True  # type: ignore[assignment]  # the same
    if not step:
        return {
            "hf sdpa": lambda: sdpa_attention_forward(module, queries, keys, values, mask, scaling=spec.softmax_scale),
            "repeat_kv + mask": repeated,
        }
    cache = DynamicCache()
    cache.update(keys[:, :, :-1], values[:, :, :-1], 0)

    def update_and_attend() -> object:
        grown = cache.update(keys[:, :, -1:], values[:, :, -1:], 0)
        out = sdpa_attention_forward(module, queries, *grown, mask, scaling=spec.softmax_scale)
        cache.crop(-1)
        return out

    return {"hf sdpa": update_and_attend}


def cases(*, quick: bool) -> list[tuple[str, int, int, int | None, bool]]:
    """(name, queries, keys, window, whether the new keys are stored too)."""
    lengths = (128, 1024) if quick else (128, 1024, 4096)
    rows: list[tuple[str, int, int, int | None, bool]] = [("decode", 1, length, None, False) for length in lengths]
    rows += [("decode step", 1, length, None, True) for length in lengths]
    rows += [("decode, window 512", 1, length, 512, False) for length in lengths if length > 512]
    rows += [("prefill", length, length, None, False) for length in lengths if length <= 1024]
    rows += [("chunk of 8", 8, length, None, False) for length in lengths]
    rows += [("chunk of 256", 256, length, None, False) for length in lengths if length > 256]
    rows += [("prefill, window 512", length, length, 512, False) for length in lengths if length > 512]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--quick", action="store_true", help="fewer lengths, less time each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    limit = read_limit()
    print(f"{arguments.threads} threads, reading {limit / 1e9:.1f} GB/s")
    names = ("contiguous", "paged", "scattered", "hf sdpa", "repeat_kv + mask")
    header = "".join(f"{name:>18}" for name in names)
    print(f"{'microseconds per call':<44}{header}{'hf / contiguous':>18}{'% of read limit':>18}")
    results = []
    for shape, (heads, kv_heads, head_dim) in SHAPES.items():
        for dtype in DTYPES:
            for case, num_queries, length, window, step in cases(quick=arguments.quick):
                spec = AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, window=window)
                q = torch.randn(num_queries, heads, head_dim).to(dtype)
                k, v = (torch.randn(length, kv_heads, head_dim).to(dtype) for _ in range(2))
                with torch.inference_mode():
                    contenders = our_contenders(spec, q, k, v, step=step)
                    contenders |= their_contenders(spec, q, k, v, step=step)
                    times = medians(contenders, 0.3 if arguments.quick else 1.0)
                touched = 2 * min(length, (window or length) + num_queries - 1) * kv_heads * head_dim * dtype.itemsize
                share = 100 * touched / (times["contiguous"] / 1e6) / limit
                name = f"{shape} {str(dtype).removeprefix('torch.')} {case} S={length}"
                columns = "".join(f"{times[n]:>18.1f}" if n in times else f"{'-':>18}" for n in names)
                ratio = f"{times['hf sdpa'] / times['contiguous']:.2f}" if "hf sdpa" in times else "-"
                print(f"{name:<44}{columns}{ratio:>18}{share:>18.0f}", flush=True)
                results += [
                    {"name": f"{name} / {contender}", "value": round(value, 2), "unit": "us"}
                    for contender, value in times.items()
                ]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": arguments.threads,
        "read_bytes_per_s": round(limit),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    report = {"benchmark": "attention", "package": "pio-attention", "results": results, "machine": machine}
    line = json.dumps(report)
    if arguments.json:
        arguments.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
