"""Attention over pages: written, planned, attended and merged, against softmax attention in float64."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Floats = NDArray[np.float32]

ROOT = Path(__file__).parents[1]
F16, BF16, I8, F32 = range(4)
FORMATS = {"f16": F16, "bf16": BF16, "i8": I8, "f32": F32}
COMPILE = [
    *["c++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"],
    *["-nostdlib++", "-fno-exceptions", "-fno-rtti", "-ffp-contract=on"],
]
# Flags of the compiler, and what the processor must say that it has.
INSTRUCTION_SETS = {
    "scalar": (["-DPIO_SCALAR", str(ROOT / "native/scalar/attention.cpp")], []),
    "avx2": (["-mcpu=x86_64_v3", "-DPIO_ISA=avx2"], ["avx2", "fma", "f16c"]),
    "avx512": (["-mcpu=x86_64_v4", "-DPIO_ISA=avx512"], ["avx512f", "avx512bw", "avx512vl", "avx512dq"]),
    "avx512bf16": (["-mcpu=x86_64_v4+avx512bf16", "-DPIO_ISA=avx512bf16"], ["avx512f", "avx512_bf16"]),
    "neon": (["-mcpu=generic+dotprod", "-DPIO_ISA=neon"], ["asimddp"]),
}


# --- Twins of native/program.h and native/kernels.h ---


def _fields(**types: Any) -> list[tuple[str, Any]]:
    return list(types.items())


P, F = ctypes.c_void_p, ctypes.c_float
I32, I64, U32 = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32


class Norm(ctypes.Structure):
    _fields_ = _fields(weight=P, eps=F, offset=F)


class LayerCache(ctypes.Structure):
    _fields_ = _fields(pages=P, page_bytes=I64, format=U32, group=I32, page_size=I32, reserved=I32)


class AttentionOp(ctypes.Structure):
    _fields_ = _fields(
        kind=U32, qkv=I32, out=I32, rotary=I32, heads=I32, kv_heads=I32, head_size=I32, pairs=I32, interleaved=I32,
        window=I32, scale=F, softcap=F, query_norm=Norm, key_norm=Norm, sinks=P, cache=P,
    )  # fmt: skip


class GroupTables(ctypes.Structure):
    _fields_ = _fields(block_tables=P, stride=I64, slots=P)


class Batch(ctypes.Structure):
    _fields_ = _fields(
        num_tokens=I32, num_sequences=I32, num_logits=I32, num_groups=I32, token_ids=P, positions=P, query_starts=P,
        sequence_lengths=P, logit_rows=P, groups=P, logits=P,
    )  # fmt: skip


class Task(ctypes.Structure):
    _fields_ = _fields(op=P, batch=P, qkv=P, qkv_stride=I64, rotary=P, out=P, out_stride=I64)


class Item(ctypes.Structure):
    _fields_ = _fields(
        sequence=I32, kv_head=I32, row_begin=I32, row_end=I32, key_begin=I32, key_end=I32, partial=I32, parts=I32
    )


# --- Libraries ---


def _processor_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    lines = cpuinfo.read_text().splitlines()
    return set().union(*(line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The kernels of one instruction set, compiled once; skips where the processor lacks it."""
    folder = tmp_path_factory.mktemp("attention")
    built: dict[str, ctypes.CDLL] = {}

    def load(name: str) -> ctypes.CDLL:
        arguments, needed = INSTRUCTION_SETS[name]
        missing = set(needed) - _processor_flags()
        if missing:
            pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("no compiler: ziglang is not installed")
        if name not in built:
            path = folder / f"{name}.so"
            sources = [str(ROOT / "tests/native/attention_shim.cpp"), str(ROOT / "native/attention_plan.cpp")]
            subprocess.run(
                [sys.executable, "-m", "ziglang", *COMPILE, *sources, *arguments, "-o", str(path)], check=True
            )
            built[name] = ctypes.CDLL(str(path))
            for function in ("shim_scratch", "shim_partial", "pio_page_bytes"):
                getattr(built[name], function).restype = I64
        return built[name]

    return load


# --- A step, and what must come of it ---


@dataclass(frozen=True)
class Case:
    """One layer and one ragged step: ``sequences`` are (tokens before the step, tokens of the step)."""

    sequences: Sequence[tuple[int, int]]
    heads: int = 6
    kv_heads: int = 2
    head_size: int = 64
    kv_format: int = F16
    page_size: int = 16
    pairs: int = 0
    interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    norms: bool = False
    threads: int = 2
    spread: float = 1.0
    first_score: float = 0.0  # by which the first key of a sequence is above its others
    not_finite: int | None = None  # which number of the first sequence's last token is none: of q, k and v
    seed: int = 0


def _stored(x: Floats, kv_format: int) -> NDArray[np.float64]:
    """``x`` (..., D) as it comes back from a cache."""
    if kv_format == F16:
        return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float64)
    if kv_format == BF16:
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    if kv_format == I8:
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        return (np.rint(x / np.where(scale > 0, scale, 1)) * scale).astype(np.float64)
    return x.astype(np.float64)


def _prepared(case: Case, x: Floats, weight: Floats | None, angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Norms and turns heads ``x`` (T, heads, D) by ``angles`` (T, pairs)."""
    y = x.astype(np.float64)
    if weight is not None:
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * (weight + 1.0)
    cosine, sine = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    first = np.s_[..., 0 : 2 * case.pairs : 2] if case.interleaved else np.s_[..., : case.pairs]
    second = np.s_[..., 1 : 2 * case.pairs : 2] if case.interleaved else np.s_[..., case.pairs : 2 * case.pairs]
    a, b = y[first].copy(), y[second].copy()
    y[first], y[second] = a * cosine - b * sine, b * cosine + a * sine
    return y


def _attention(case: Case, q: Any, k: Any, v: Any, before: int, sinks: Floats | None) -> NDArray[np.float64]:
    """softmax(q k^T) v of one sequence in float64: (T, H, D) from (T, H, D) and (S, K, D)."""
    group = case.heads // case.kv_heads
    scores = np.einsum("thd,shd->hts", q, np.repeat(k, group, axis=1)) * case.head_size**-0.5
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    position, key = before + np.arange(len(q))[:, None], np.arange(len(k))[None, :]
    visible = (key <= position) & ((case.window == 0) | (key > position - case.window))
    scores = np.where(visible, scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks[:, None, None])
    weights = np.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - largest)
    return np.einsum("hts,shd->thd", weights / total, np.repeat(v, group, axis=1))


def run(library: ctypes.CDLL, case: Case) -> tuple[Floats, NDArray[np.float64]]:
    """What the kernels give for a case, and what they should: (N, H, D) each.

    The tokens before the step are written by a step of their own, in random order of pages; slots that nothing wrote
    hold NaN.
    """
    rng = np.random.default_rng(case.seed)
    heads, kv_heads, size, page = case.heads, case.kv_heads, case.head_size, case.page_size
    lengths = [before + now for before, now in case.sequences]
    page_counts = [-(-length // page) for length in lengths]
    numbers = rng.permutation(sum(page_counts)).astype(np.int32)
    tables = np.full((len(lengths), max(page_counts, default=0) + 1), -1, np.int32)
    for b, count in enumerate(page_counts):
        tables[b, :count], numbers = numbers[:count], numbers[count:]
    page_bytes = library.pio_page_bytes(U32(case.kv_format), page, kv_heads, size)
    pages = np.full(sum(page_counts) * page_bytes + 64, 0xFF, np.uint8)  # NaN in every format but int8

    weights = [rng.standard_normal(size).astype(np.float32) * 0.2 if case.norms else None for _ in range(2)]
    sinks = rng.standard_normal(heads).astype(np.float32) if case.sinks else None
    pointer = lambda x: None if x is None else x.ctypes.data  # noqa: E731 - the shortest name for a dozen uses
    cache = LayerCache(pointer(pages), page_bytes, case.kv_format, 0, page, 0)
    op = AttentionOp(
        3, 0, 1, -1, heads, kv_heads, size, case.pairs, int(case.interleaved), case.window, size**-0.5, case.softcap,
        Norm(pointer(weights[0]), 1e-5, 1.0), Norm(pointer(weights[1]), 1e-5, 1.0), pointer(sinks),
        ctypes.addressof(cache),
    )  # fmt: skip

    def step(qkv: Floats, spans: Sequence[tuple[int, int]], attend: bool) -> tuple[Floats, NDArray[np.float64]]:
        """Runs rows of ``qkv``, of sequence b the positions ``spans[b]``; the outputs, and the angles of the rows."""
        rows = sum(end - begin for begin, end in spans)
        positions = np.concatenate([np.arange(*span, dtype=np.int64) for span in spans])
        sequence = np.repeat(np.arange(len(spans)), [end - begin for begin, end in spans])
        starts = np.cumsum([0, *(end - begin for begin, end in spans)]).astype(np.int32)
        ends = np.array([end for _, end in spans], np.int32)
        slots = tables[sequence, positions // page].astype(np.int64) * page + positions % page
        angles = positions[:, None] * 10000.0 ** (-np.arange(case.pairs) / max(case.pairs, 1))
        rotary = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
        visible = tables.copy()
        if case.window and attend:
            for b, (begin, _) in enumerate(spans):
                visible[b, : max(begin - case.window + 1, 0) // page] = -1
        group = GroupTables(pointer(visible), visible.shape[1], pointer(slots))
        batch = Batch(
            rows, len(spans), 0, 1, None, pointer(positions), pointer(starts), pointer(ends), None,
            ctypes.addressof(group), None,
        )  # fmt: skip
        out = np.full((rows, heads * size), np.nan, np.float32)
        task = Task(
            ctypes.addressof(op), ctypes.addressof(batch), pointer(qkv), qkv.shape[1],
            pointer(rotary) if case.pairs else None, pointer(out), out.shape[1],
        )  # fmt: skip
        library.shim_write(ctypes.byref(task))
        if attend:
            items = (Item * 4096)()
            count = library.shim_plan(ctypes.byref(op), ctypes.byref(batch), case.threads, items, len(items))
            scratch = np.full(library.shim_scratch(ctypes.byref(op)), 0xFF, np.uint8)
            partials = np.full((count, library.shim_partial(ctypes.byref(op))), np.nan, np.float32)
            for index in rng.permutation(count):
                library.shim_attend(
                    ctypes.byref(task), ctypes.byref(items[index]), P(pointer(scratch)), P(pointer(partials))
                )
            for item in items[:count]:
                if item.parts > 1:
                    library.shim_merge(ctypes.byref(task), ctypes.byref(item), P(pointer(partials)))
        return out, angles

    width = (heads + 2 * kv_heads) * size
    qkv = [case.spread * rng.standard_normal((length, width)).astype(np.float32) for length in lengths]
    along = np.float32((case.first_score * size**-0.5) ** 0.5)
    for x in qkv:
        x[:, : heads * size] += along
        x[0, heads * size : (heads + kv_heads) * size] += along
    if case.not_finite is not None:
        qkv[0][-1, case.not_finite] = np.nan
    spans = [(0, before) for before, _ in case.sequences]
    now = [(before, before + tokens) for before, tokens in case.sequences]
    if sum(before for before, _ in case.sequences):
        step(np.concatenate([x[:end] for x, (_, end) in zip(qkv, spans, strict=True)]), spans, attend=False)
    out, _ = step(np.concatenate([x[slice(*span)] for x, span in zip(qkv, now, strict=True)]), now, attend=True)

    expected = []
    for x, (before, _) in zip(qkv, case.sequences, strict=True):
        angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(case.pairs) / max(case.pairs, 1))
        split = np.split(x.reshape(len(x), -1, size), [heads, heads + kv_heads], axis=1)
        queries = _prepared(case, split[0][before:], weights[0], angles[before:])
        keys = _stored(_prepared(case, split[1], weights[1], angles).astype(np.float32), case.kv_format)
        expected.append(_attention(case, queries, keys, _stored(split[2], case.kv_format), before, sinks))
    return out.reshape(-1, heads, size), np.concatenate(expected)


# Sequences of a step: alone, ragged, at the edges of blocks, pages and tiles, chunks of prompts on top of others.
STEPS = {
    "one": [(0, 1)],
    "decode": [(0, 1), (14, 1), (15, 1), (16, 1), (63, 1), (64, 1), (500, 1)],
    "prefill": [(0, 17), (0, 70)],
    "ragged": [(33, 1), (0, 5), (100, 31), (64, 64), (7, 2), (700, 3)],
    "long": [(1200, 1)],
}
SHAPES = {
    "smollm2": {"heads": 9, "kv_heads": 3, "head_size": 64, "pairs": 32},
    "mha": {"heads": 2, "kv_heads": 2, "head_size": 80, "pairs": 20, "interleaved": True},
    "mqa": {"heads": 8, "kv_heads": 1, "head_size": 128, "pairs": 64, "norms": True},
    "wide-group": {"heads": 13, "kv_heads": 1, "head_size": 96, "pairs": 48},
    "narrow": {"heads": 4, "kv_heads": 2, "head_size": 8},
    "odd": {"heads": 4, "kv_heads": 2, "head_size": 72, "pairs": 4},
    "gemma": {"heads": 4, "kv_heads": 2, "head_size": 256, "pairs": 128, "softcap": 20.0, "window": 40},
    "sinks": {"heads": 8, "kv_heads": 2, "head_size": 64, "sinks": True, "window": 128, "pairs": 32},
}


def tolerance(isa: str, case: Case) -> float:
    """Bound on the error of an output of values of size one.

    Rounding to bfloat16 moves scores of a few units; rounding to int16, 2^-13 of a tile's largest values and weights,
    moves values of up to four by half a thousandth, and scores by less.
    """
    exact_sums = 2e-5
    return exact_sums if case.kv_format == F32 else {"avx512bf16": 3e-2, "avx2": 1e-3}.get(isa, exact_sums)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_attention_is_softmax_over_the_stored_keys(
    library: Callable[[str], ctypes.CDLL], isa: str, kv_format: str, shape: str
) -> None:
    """Every shape, format and kind of step agrees with float64 attention over what the cache holds."""
    kernels = library(isa)
    for number, sequences in enumerate(STEPS.values()):
        case = Case(sequences, kv_format=FORMATS[kv_format], page_size=16 << number % 3, seed=number, **SHAPES[shape])
        out, expected = run(kernels, case)
        # A key that lies between two numbers of the format may be stored as either, by a rounding in its norm or turn.
        step = {"f16": 1e-3, "bf16": 6e-3, "i8": 2e-2, "f32": 0.0}[kv_format] if case.pairs or case.norms else 0.0
        np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance(isa, case) + step)


@pytest.mark.parametrize("isa", [name for name in INSTRUCTION_SETS if name != "scalar"])
def test_attention_over_4097_tokens(library: Callable[[str], ctypes.CDLL], isa: str) -> None:
    """The last of 4,097 tokens, one more than whole tiles, and a chunk that ends there; split over threads."""
    kernels = library(isa)
    for sequences in ([(4096, 1)], [(3967, 130)]):
        case = Case(sequences, heads=3, kv_heads=1, threads=4, pairs=32)
        out, expected = run(kernels, case)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-3 if isa == "avx512bf16" else 1e-4)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_many_small_weights_beside_a_large_one(library: Callable[[str], ctypes.CDLL], isa: str) -> None:
    """A first key that takes half of all, as it does in real models, leaves the other half to thousands of others."""
    for kv_format in (F16, BF16):
        case = Case([(3967, 130)], heads=3, kv_heads=1, kv_format=kv_format, first_score=9.0)
        out, expected = run(library(isa), case)
        np.testing.assert_allclose(out, expected, rtol=0, atol={"avx512bf16": 3e-3, "avx2": 1e-3}.get(isa, 1e-4))


@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("kv_format", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_numbers_that_are_none_are_not_hidden(
    library: Callable[[str], ctypes.CDLL], isa: str, kv_format: str, tokens: int, which: str
) -> None:
    """Who sees one has NaN for it, whatever numbers are rounded to; another sequence has what it would."""
    column = (6 + 2 * (which == "value")) * 64
    case = Case([(20, tokens), (20, tokens)], kv_format=FORMATS[kv_format], not_finite=column)
    with np.errstate(invalid="ignore"):
        out, expected = run(library(isa), case)
    seen = out[tokens - 1, :3]
    assert np.isnan(seen if which == "key" else seen[:, 0]).all()
    np.testing.assert_allclose(out[tokens:], expected[tokens:], rtol=0, atol=tolerance(isa, case))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_values_beyond_float16_are_held_finite(library: Callable[[str], ctypes.CDLL], isa: str) -> None:
    """A float16 cache stores its largest number instead of infinity, so that other tokens keep their meaning."""
    out, expected = run(library(isa), Case([(20, 3)], spread=1e5, kv_format=F16))
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 65536  # which is 65504 in bfloat16
    assert np.abs(expected).max() <= 65504


def plan(
    kernels: ctypes.CDLL, sequences: Sequence[tuple[int, int]], *, threads: int, kv_heads: int = 3, window: int = 0
) -> list[Item]:
    """The items of a step, as (tokens before it, tokens of it) per sequence, with 3 query heads per KV head."""
    cache = LayerCache(None, 0, F16, 0, 16, 0)
    op = AttentionOp(heads=3 * kv_heads, kv_heads=kv_heads, head_size=64, window=window, cache=ctypes.addressof(cache))
    positions = np.concatenate([np.arange(before, before + rows) for before, rows in sequences]).astype(np.int64)
    starts = np.cumsum([0, *(rows for _, rows in sequences)]).astype(np.int32)
    batch = Batch(
        num_tokens=len(positions),
        num_sequences=len(sequences),
        positions=positions.ctypes.data,
        query_starts=starts.ctypes.data,
    )
    items = (Item * (len(positions) * kv_heads + kernels.shim_partials(threads)))()
    count = kernels.shim_plan(ctypes.byref(op), ctypes.byref(batch), threads, items, len(items))
    assert count <= len(items)
    return list(items[:count])


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(
    "sequences", [[(4095, 1)], [(0, 700)], [(4095, 1)] * 8, [(9000, 1), (3, 1), (500, 5)], [(3000, 90), (10, 1)]]
)
def test_a_plan_covers_each_query_and_key_once(
    library: Callable[[str], ctypes.CDLL], sequences: list[tuple[int, int]], window: int, threads: int
) -> None:
    """Per row and KV head, the items' keys lie end to end from the oldest visible to the newest, parts in order."""
    kernels = library("scalar")
    items = plan(kernels, sequences, threads=threads, window=window)
    starts = np.cumsum([0, *(rows for _, rows in sequences)])
    for sequence, (before, rows) in enumerate(sequences):
        for row in range(rows):
            position = before + row
            for head in range(3):
                mine = sorted(
                    (
                        item
                        for item in items
                        if item.sequence == sequence
                        and item.kv_head == head
                        and item.row_begin <= starts[sequence] + row < item.row_end
                    ),
                    key=lambda item: item.key_begin,
                )
                oldest = max(position - window + 1, 0) if window else 0
                assert mine[0].key_begin <= oldest
                assert mine[0].key_begin % 16 == 0
                assert mine[-1].key_end > position
                assert all(a.key_end == b.key_begin and a.key_end % 16 == 0 for a, b in itertools.pairwise(mine))
                assert [item.parts for item in mine] == [len(mine)] + [0] * (len(mine) - 1)
                first = mine[0].partial
                assert [item.partial for item in mine] == (
                    [-1] if len(mine) == 1 else [*range(first, first + len(mine))]
                )
    used = [item.partial for item in items if item.partial >= 0]
    assert sorted(used) == list(range(len(used)))
    assert len(used) <= kernels.shim_partials(threads)


def test_a_plan_shares_three_heads_over_two_threads(library: Callable[[str], ctypes.CDLL]) -> None:
    """One long sequence is split by keys, equally; for one thread, or with few keys, it is not."""
    kernels = library("scalar")
    items = plan(kernels, [(4095, 1)], threads=2)
    assert sorted(item.key_end - item.key_begin for item in items) == [2048] * 6
    assert len(plan(kernels, [(4095, 1)], threads=1)) == 3
    assert len(plan(kernels, [(400, 1)], threads=2)) == 3


def test_a_plan_begins_with_the_dearest_item(library: Callable[[str], ctypes.CDLL]) -> None:
    """Items come by falling cost, so that the last ones even out what threads still have to do."""
    items = plan(library("scalar"), [(5, 1), (900, 1), (60, 1), (0, 300)], threads=2)
    costs = [((item.row_end - item.row_begin) * 3 + 4) * (item.key_end - item.key_begin) for item in items]
    assert costs == sorted(costs, reverse=True)


def test_neon_agrees_with_scalar_under_emulation(tmp_path: Path) -> None:
    """On an emulated processor, where there is no other: NEON attention differs from scalar by rounding alone."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("no qemu-aarch64 to emulate a processor with NEON")
    pytest.importorskip("ziglang", reason="no compiler: ziglang is not installed")
    program = tmp_path / "attention_check"
    sources = ["tests/native/attention_check.cpp", "native/attention_plan.cpp", "native/scalar/attention.cpp"]
    flags = ["-target", "aarch64-linux-musl", "-mcpu=generic+dotprod", "-DPIO_ISA=neon", "-std=c++17", "-O2"]
    compiler = [sys.executable, "-m", "ziglang", "c++", "-nostdlib++", "-fno-exceptions", "-fno-rtti"]
    subprocess.run([*compiler, *flags, *(str(ROOT / source) for source in sources), "-o", str(program)], check=True)
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
