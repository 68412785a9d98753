"""Programs on the native library against the interpreter, over random ragged steps, for each instruction set."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest

from inference_pio.interfaces import (
    CacheGroup,
    ConfigError,
    DoesNotFitError,
    LayerGroup,
    SamplingBatch,
    UnsupportedError,
)
from inference_pio.kernels import Interpreter, ProgramBuilder, Runtime, instruction_sets, measure_limits, page_bytes
from inference_pio.kernels._numbers import quantised_activations
from inference_pio.kernels._tiles import _minima, split

USABLE = [each.name for each in instruction_sets() if each.usable]
FULL = LayerGroup(kind="full", window=None, layers=(0, 1))
FREQUENCIES = tuple(float(f) for f in np.float32(100.0) ** -np.arange(0, 1, 1 / 8, dtype=np.float32))


def dense(*, heads=4, kv_heads=2, size=16, width=64, inner=96, vocab=99, layers=2, tied=False, **options):
    """A small model of Llama's shape; ``options`` change it towards others."""
    builder = ProgramBuilder(vocab_size=vocab, hidden_size=width, eps=1e-5, norm_offset=options.get("norm_offset", 0.0))
    x = builder.embed("embedding", scale=options.get("embed_scale", 1.0))
    pairs = options.get("pairs", size // 2)
    rotary = builder.rotary(FREQUENCIES[:pairs], long_frequencies=options.get("long"), original_length=20)
    bias = options.get("bias", False)
    for index in range(layers):
        name = f"layers.{index}."
        rows = (heads + 2 * kv_heads) * size
        qkv = builder.linear(
            x, f"{name}qkv", rows, out="qkv", norm=f"{name}norm", bias=f"{name}qkv_bias" if bias else None
        )
        per_head = options.get("head_norms", False)
        attended = builder.attention(
            qkv,
            layer=index,
            heads=heads,
            kv_heads=kv_heads,
            head_size=size,
            rotary=rotary,
            interleaved=options.get("interleaved", False),
            window=options.get("windows", (None,) * layers)[index],
            softcap=options.get("softcap", 0.0),
            query_norm=f"{name}query_norm" if per_head else None,
            key_norm=f"{name}key_norm" if per_head else None,
            sinks=f"{name}sinks" if options.get("sinks", False) else None,
        )
        builder.add_linear(attended, f"{name}output", to=x, scale=options.get("residual", 1.0))
        hidden = builder.gated(
            x,
            f"{name}gate_up",
            2 * inner,
            out="inner",
            norm=f"{name}mlp_norm",
            bias=f"{name}gate_up_bias" if bias else None,
            activation=options.get("activation", "silu"),
        )
        builder.add_linear(hidden, f"{name}down", to=x, bias=f"{name}down_bias" if bias else None)
    softcap = options.get("final_softcap", 0.0)
    return builder.head(
        x, "embedding" if tied else "head", norm="norm", scale=options.get("logit_scale", 1.0), softcap=softcap
    )


def mixture(**options):
    """A small mixture of experts."""
    builder = ProgramBuilder(vocab_size=50, hidden_size=64, eps=1e-6)
    x = builder.embed("embedding")
    for index in range(2):
        qkv = builder.linear(x, f"{index}.qkv", 64 + 2 * 32, out="qkv", norm=f"{index}.norm")
        attended = builder.attention(qkv, layer=index, heads=4, kv_heads=2, head_size=16)
        builder.add_linear(attended, f"{index}.output", to=x)
        builder.experts(
            x,
            to=x,
            router=f"{index}.router",
            gate_up=f"{index}.gate_up",
            down=f"{index}.down",
            inner_size=40,
            num_experts=7,
            chosen=3,
            norm=f"{index}.mlp_norm",
            bias=f"{index}.router_bias" if options.pop("bias", False) else None,
            **options,
        )
    return builder.head(x, "head", norm="norm")


PROGRAMS = {
    "llama": dense(),
    "tied": dense(tied=True),
    "wide heads, odd sizes": dense(heads=3, kv_heads=1, size=24, width=72, inner=50, vocab=131, pairs=8),
    "biases": dense(bias=True),
    "qwen3": dense(head_norms=True, tied=True),
    "one head per key": dense(kv_heads=4),
    "gemma": dense(norm_offset=1.0, activation="gelu_tanh", softcap=20.0, final_softcap=5.0, embed_scale=8.0),
    "granite": dense(residual=0.3, logit_scale=0.5, activation="gelu"),
    "interleaved, partial": dense(interleaved=True, pairs=5),
    "window": dense(windows=(7, None)),
    "sinks": dense(sinks=True, windows=(5, None)),
    "longrope": dense(long=tuple(f / 3 for f in FREQUENCIES)),
    "mixture": mixture(),
    "mixture, sigmoid and bias": mixture(scoring="sigmoid", bias=True, scale=2.5, normalise=False),
    "mixture, softmax of chosen": mixture(scoring="softmax_of_chosen"),
}
# Prompts in chunks, beside sequences that decode; one token alone; many rows at once.
SCHEDULES = [{0: 5}, {0: 1, 1: 17}, {1: 1}, {0: 1, 1: 3, 2: 40}, {2: 2, 3: 1}, {0: 1, 1: 1, 2: 1, 3: 1}, {4: 70}]


def hidden_rows(batch):
    """Some rows of a step, so that there are some to leave out: every other one."""
    return np.arange(0, len(batch.token_ids), 2)


def minima_of(parameters, name):
    """Minima of a matrix, (rows, blocks of 32 inputs); None where its format has none."""
    parts = [part for part in parameters.segments(name) if part.format is not None and part.format.has_minima]
    if not parts:
        return None
    every = []
    for part in parts:
        tiles = -(-part.columns // 32)
        behind = parameters.strips(part).reshape(-(-part.rows // 16), -1)[:, tiles * part.format.tile_bytes :]
        every.append(_minima(behind, tiles)[..., 0].transpose(0, 2, 1).reshape(-1, tiles)[: part.rows])
    return np.concatenate(every)


class RoundedSums(Interpreter):
    """Rounds the sums of blocks of inputs that minima are multiplied with, as the native kernels do."""

    def _product(self, name, norm, x):
        y = super()._product(name, norm, x)
        if name not in self._quantised or name not in self.minima:
            return y
        blocks = self._norm(norm, x).reshape(len(x), -1, 32)
        kept = quantised_activations(blocks, outliers=norm is not None)
        if norm is not None:
            ordered = np.sort(np.abs(blocks), axis=-1)
            kept = np.where(
                (ordered[..., -1:] > 2.5 * ordered[..., -2:-1]) & (np.abs(blocks) == ordered[..., -1:]), 0, kept
            )
        sums = kept.sum(axis=-1)
        steps = np.abs(sums).max(axis=1, keepdims=True) / min(32767, (2**31 - 1) // 8192 // sums.shape[1])
        return y + (np.rint(sums / np.maximum(steps, 1e-30)) * steps - sums) @ self.minima[name].T


def run_both(program, parameters, make_paging, groups, *, page_size=16, schedules=SCHEDULES, isa="scalar", **options):
    """Yields native and interpreted logits of every row, step by step, and hidden states of every other one."""
    rng = np.random.default_rng(5)
    paging = make_paging(rng, groups, page_size=page_size, vocab_size=program.vocab_size)
    exact = options.pop("exact", {})
    kv_format = options.pop("kv_format", "f32")
    values = {name: parameters.values(name) for name in parameters}
    reference = RoundedSums(program, values, paging.caches, groups, page_size=page_size, kv_format=kv_format, **exact)
    reference.minima = {name: minima for name in parameters if (minima := minima_of(parameters, name)) is not None}
    with Runtime(
        program,
        parameters,
        paging.caches,
        groups,
        page_size=page_size,
        kv_format=kv_format,
        max_tokens=80,
        isa=isa,
        **options,
    ) as runtime:
        assert runtime.isa == isa
        for schedule in schedules:
            batch = paging.batch(schedule, every_row=True)
            yield runtime.step(batch), reference.step(batch)
            some = dataclasses.replace(batch, hidden_rows=hidden_rows(batch), logit_rows=batch.logit_rows[-1:])
            runtime.step(some)
            reference.step(some)
            yield runtime.hidden_states(), reference.hidden_states()


def close(native, expected, share):
    """Within ``share`` of the largest logit."""
    return np.abs(native - expected).max() <= share * np.abs(expected).max()


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("name", PROGRAMS)
def test_float32_programs_agree_with_interpreter(name, isa, random_parameters, make_paging):
    """In float32 a program's logits differ from those in double precision by rounding alone."""
    program = PROGRAMS[name]
    parameters = random_parameters(program, np.random.default_rng(1))
    exact = {"dtype": np.float64}
    for native, expected in run_both(program, parameters, make_paging, [FULL], isa=isa, threads=2, exact=exact):
        assert close(native, expected, 2e-5)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_quantised_programs_agree_with_interpreter(encoding, isa, random_parameters, make_paging):
    """With block formats and int8 activations, what differs is activations that round to the other side."""
    program = dense(heads=4, kv_heads=2, size=64, width=256, inner=256, pairs=8)
    parameters = random_parameters(program, np.random.default_rng(3), encoding)
    exact = {"quantise_activations": True}
    for native, expected in run_both(program, parameters, make_paging, [FULL], isa=isa, threads=2, exact=exact):
        assert close(native, expected, 2e-2)
        assert np.sqrt(np.mean((native - expected) ** 2)) <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize(
    "encoding, weights, share", [("F16", "auto", 2e-5), ("BF16", "auto", 2e-2), ("F32", "bf16", 2e-2)]
)
def test_half_precision_programs_agree_with_interpreter(encoding, weights, share, isa, random_parameters, make_paging):
    """Float16 weights are exact in float32; bfloat16 ones may meet activations in bfloat16."""
    program = PROGRAMS["llama"]
    parameters = random_parameters(program, np.random.default_rng(3), encoding, weights)
    for native, expected in run_both(program, parameters, make_paging, [FULL], isa=isa):
        assert close(native, expected, share)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["llama", "mixture"])
def test_int8_weights_agree_with_interpreter(name, encoding, isa, random_parameters, make_paging):
    """Matrices that are quantised at loading compute as the blocks that they became."""
    program = PROGRAMS[name]
    parameters = random_parameters(program, np.random.default_rng(4), encoding, "int8")
    assert set(parameters.formats) == {"Q8"}
    exact = {"quantise_activations": True}
    for native, expected in run_both(program, parameters, make_paging, [FULL], isa=isa, exact=exact):
        assert close(native, expected, 5e-2)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("kv_format, share", [("f16", 2e-2), ("bf16", 2e-2), ("int8", 3e-2)])
@pytest.mark.parametrize("page_size", [16, 32])
def test_cache_formats_agree_with_interpreter(kv_format, share, page_size, isa, random_parameters, make_paging):
    """Keys and values come back as what their format keeps of them; prompts may be attended over in bfloat16."""
    program = PROGRAMS["llama"]
    parameters = random_parameters(program, np.random.default_rng(6))
    for native, expected in run_both(
        program, parameters, make_paging, [FULL], isa=isa, kv_format=kv_format, page_size=page_size
    ):
        assert close(native, expected, share)


@pytest.mark.parametrize("isa", USABLE)
def test_groups_of_layers_have_their_own_pages(isa, random_parameters, make_paging):
    """A layer with a window reads its own group's tables, whose pages behind the window are gone."""
    program = dense(windows=(20, None))
    groups = [
        LayerGroup(kind="full", window=None, layers=(1,)),
        LayerGroup(kind="window", window=20, layers=(0,)),
    ]
    parameters = random_parameters(program, np.random.default_rng(7))
    schedules = [{0: 30, 1: 3}, {0: 20, 1: 1}, {0: 1, 1: 60}, {0: 1, 1: 1}, {0: 1, 1: 1}]
    exact = {"dtype": np.float64}
    for native, expected in run_both(
        program, parameters, make_paging, groups, isa=isa, schedules=schedules, exact=exact
    ):
        assert close(native, expected, 2e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit_of_decoding(threads, random_parameters, make_paging):
    """How many threads share the work does not show in products and short attention."""
    program = PROGRAMS["qwen3"]
    parameters = random_parameters(program, np.random.default_rng(8))
    isa = USABLE[-1]
    alone = [native.copy() for native, _ in run_both(program, parameters, make_paging, [FULL], isa=isa, threads=1)]
    shared = [
        native.copy() for native, _ in run_both(program, parameters, make_paging, [FULL], isa=isa, threads=threads)
    ]
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def small(random_parameters, make_paging):
    """A runtime of a small model, and its bookkeeping."""
    program = PROGRAMS["llama"]
    paging = make_paging(np.random.default_rng(9), [FULL], page_size=16, vocab_size=program.vocab_size)
    parameters = random_parameters(program, np.random.default_rng(9))
    with Runtime(program, parameters, paging.caches, [FULL], page_size=16, kv_format="f32", max_tokens=32) as runtime:
        yield runtime, paging


@pytest.mark.parametrize("rows", [[1], [5], [0, 3, 5], [0, 1, 2, 3, 4], [5, 1], [2, 2], [0, 1, 2, 3, 5, 4]], ids=str)
def test_rows_without_logits_are_left_out(small, rows):
    """The rows asked for have the logits that they have among all, in any order, and asked for twice as well."""
    runtime, paging = small
    batch = paging.batch({0: 4, 1: 2}, every_row=True)
    every = runtime.step(batch).copy()
    again = runtime.step(dataclasses.replace(batch, logit_rows=np.array(rows)))
    np.testing.assert_allclose(again, every[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [[699], [700], [0, 703], [350, 701]], ids=str)
def test_rows_without_logits_are_left_out_of_long_prompts(rows, random_parameters, make_paging):
    """Rows that are left out of the last attention, or share an item of it, leave the others their logits."""
    program = PROGRAMS["llama"]
    paging = make_paging(np.random.default_rng(9), [FULL], page_size=16, vocab_size=program.vocab_size)
    parameters = random_parameters(program, np.random.default_rng(9))
    with Runtime(program, parameters, paging.caches, [FULL], page_size=16, max_tokens=704, threads=2) as runtime:
        runtime.step(paging.batch({1: 700}))
        batch = paging.batch({0: 700, 1: 1, 2: 3}, every_row=True)
        every = runtime.step(batch).copy()
        again = runtime.step(dataclasses.replace(batch, logit_rows=np.array(rows)))
        np.testing.assert_allclose(again, every[rows], rtol=1e-5, atol=1e-5)


ROW_LISTS = [[], [0], [1], [5], [0, 1, 2, 3, 4, 5], [2, 4], [4, 2], [3, 3]]


@pytest.mark.parametrize("rows", ROW_LISTS, ids=str)
@pytest.mark.parametrize("hidden", ROW_LISTS, ids=str)
def test_hidden_states_of_any_rows_beside_logits_of_any(small, rows, hidden):
    """Whichever rows of either kind are wanted, the others are left out, and those have what they have among all."""
    runtime, paging = small
    everything = np.arange(6)
    batch = dataclasses.replace(paging.batch({0: 4, 1: 2}, every_row=True), hidden_rows=everything)
    logits, states = runtime.step(batch).copy(), runtime.hidden_states().copy()
    assert states.shape == (6, runtime.hidden_size) == (6, 64)
    wanted = dataclasses.replace(
        batch, logit_rows=np.array(rows, dtype=np.int64), hidden_rows=np.array(hidden, dtype=np.int64)
    )
    np.testing.assert_allclose(runtime.step(wanted), logits[rows], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(runtime.hidden_states(), states[hidden], rtol=1e-5, atol=1e-6)


@pytest.fixture(params=USABLE)
def wide(request, random_parameters, make_paging):
    """A runtime of a model with a head of 8 bits over a vocabulary that is worth screening, and its bookkeeping."""
    program = dense(vocab=2005, width=128, tied=True)
    paging = make_paging(np.random.default_rng(11), [FULL], page_size=16, vocab_size=program.vocab_size)
    parameters = random_parameters(program, np.random.default_rng(12), "Q8_0")
    options = {"page_size": 16, "kv_format": "f32", "max_tokens": 32, "isa": request.param, "threads": 2}
    with Runtime(program, parameters, paging.caches, [FULL], **options) as runtime:
        yield runtime, paging


def wanting(batch, *largest):
    """The same step with so many of the largest logits wanted of each row."""
    return dataclasses.replace(batch, largest_wanted=np.array(largest, dtype=np.int32))


@pytest.mark.parametrize("largest", [(1,), (7,), (64,), (1, 1), (3, 1, 20), (1, 2, 3, 4)], ids=str)
def test_the_largest_logits_are_those_of_all(wide, largest):
    """Bit by bit, and whatever else there is, is -inf or itself; with a few wanted, most of the head is left out."""
    runtime, paging = wide
    left_out = 0
    for length in (3, 1, 1, 5):
        batch = paging.batch(dict.fromkeys(range(len(largest)), length))
        every = runtime.step(batch).copy()
        some = runtime.step(wanting(batch, *largest))
        for row, expected, count in zip(some, every, largest, strict=True):
            wanted = expected >= np.sort(expected)[-count]
            np.testing.assert_array_equal(row[wanted], expected[wanted])
            assert np.all((row == expected) | (row == -np.inf))
            left_out += np.count_nonzero(row == -np.inf)
    assert left_out > 4 * len(largest) * 1500 or max(largest) > 1


@pytest.mark.parametrize("largest", [(0,), (-1,), (65,), (2005,), (1, 0), (1, 1, 1, 1, 1)], ids=str)
def test_all_logits_are_there_where_many_are_wanted(wide, largest):
    """None of a row that wants all, or more than is worth asking for; and many rows have the whole head read."""
    runtime, paging = wide
    batch = paging.batch(dict.fromkeys(range(len(largest)), 2))
    every = runtime.step(batch).copy()
    np.testing.assert_array_equal(runtime.step(wanting(batch, *largest)), every)


def test_tokens_are_drawn_from_the_largest_as_from_all(wide):
    """What is chosen greedily, or among the most likely, does not depend on whether the others are known."""
    runtime, paging = wide
    for step in range(20):
        batch = paging.batch({0: 1, 1: 1})
        draws = sampling(2, temperature=np.array([0, 0.7], dtype=np.float32), top_k=np.array([0, 5], dtype=np.int32),
                         top_p=np.full(2, 0.9, dtype=np.float32), uniforms=np.array([0, step / 20]))  # fmt: skip
        expected = runtime.sample(runtime.step(batch), draws)
        np.testing.assert_array_equal(runtime.sample(runtime.step(wanting(batch, 1, 5)), draws), expected)


def test_scaled_logits_are_screened_as_well(random_parameters, make_paging):
    """A factor on the logits leaves the largest what they are, and the others out."""
    program = dense(vocab=2005, width=128, logit_scale=0.3)
    paging = make_paging(np.random.default_rng(15), [FULL], page_size=16, vocab_size=program.vocab_size)
    parameters = random_parameters(program, np.random.default_rng(15), "Q8_0")
    with Runtime(program, parameters, paging.caches, [FULL], page_size=16, kv_format="f32", max_tokens=32) as runtime:
        for _ in range(5):
            batch = paging.batch({0: 2})
            every = runtime.step(batch)[0].copy()
            some = runtime.step(wanting(batch, 4))[0]
            wanted = every >= np.sort(every)[-4]
            np.testing.assert_array_equal(some[wanted], every[wanted])
            assert np.count_nonzero(some == -np.inf) > 1000


@pytest.mark.parametrize(
    "options", [{"final_softcap": 5.0}, {"vocab": 1000}, {"logit_scale": -1.0}], ids=["capped", "small", "negative"]
)
def test_heads_that_cannot_be_screened_are_read_whole(options, random_parameters, make_paging):
    """A soft cap, a negative factor, or too few tokens to be worth it: every logit is there."""
    program = dense(**{"vocab": 2005, "width": 128, **options})
    paging = make_paging(np.random.default_rng(16), [FULL], page_size=16, vocab_size=program.vocab_size)
    parameters = random_parameters(program, np.random.default_rng(16), "Q8_0")
    with Runtime(program, parameters, paging.caches, [FULL], page_size=16, kv_format="f32", max_tokens=32) as runtime:
        batch = paging.batch({0: 2})
        every = runtime.step(batch).copy()
        np.testing.assert_array_equal(runtime.step(wanting(batch, 1)), every)


def eight_bit_strips(quants):
    """A matrix of quants (rows, columns), multiples of 16 and 32, in tiles of Q8 with scales of 2^-8, flat."""
    strips, tiles = quants.shape[0] // 16, quants.shape[1] // 32
    grouped = quants.reshape(strips, 16, tiles, 8, 4).transpose(0, 2, 3, 1, 4).reshape(strips, tiles, 512)
    scales = np.full((strips, tiles, 16), 2.0**-8, dtype=np.float16).view(np.uint8)
    return np.concatenate([grouped.astype(np.uint8), scales], axis=2).reshape(-1)


@pytest.mark.parametrize("isa", USABLE)
def test_the_most_likely_is_found_where_its_upper_bits_speak_against_it(isa, random_parameters, make_paging):
    """One token whose bits that are not read at first all speak for it, beside one of which they all speak against it:
    by their upper bits alone it seems less likely by nearly all that the others could make up for.
    """
    program = dense(vocab=2048, width=128)
    paging = make_paging(np.random.default_rng(14), [FULL], page_size=16, vocab_size=program.vocab_size)
    parameters = random_parameters(program, np.random.default_rng(14), weights="int8")
    options = {"page_size": 16, "kv_format": "f32", "max_tokens": 32, "isa": isa}
    with Runtime(program, parameters, paging.caches, [FULL], **options) as runtime:
        batch = dataclasses.replace(paging.batch({0: 3}), hidden_rows=np.array([2]))
        runtime.step(batch)
        hidden = runtime.hidden_states()[0].copy()
        signs, magnitudes = np.sign(hidden), np.abs(hidden)
        quants = np.tile(128 - 40 * signs, (2048, 1))
        quants[5] = 128 + 8 * signs + np.where(signs > 0, 0, 3)
        order = np.argsort(-magnitudes)
        weaker = np.zeros(128, dtype=bool)
        weaker[order] = np.cumsum(magnitudes[order]) < 0.74 * magnitudes.sum()
        quants[777] = 128 + 8 * signs + np.where(signs > 0, 3, 0) - 4 * signs * weaker
        (head,) = parameters.segments("head")
        parameters.strips(head)[:] = split(eight_bit_strips(quants), 128)
        every = runtime.step(batch)[0].copy()
        assert every.argmax() == 777
        some = runtime.step(wanting(batch, 1))[0]
        assert some[777] == every[777]
        assert np.count_nonzero(some == -np.inf) == 2048 - 2 * 16
        np.testing.assert_array_equal(runtime.hidden_states()[0], hidden)


def test_equal_logits_leave_nothing_out(random_parameters, make_paging):
    """Where every token is as likely as any other, all are among the most likely, in every step."""
    program = dense(vocab=1024, width=64)
    paging = make_paging(np.random.default_rng(13), [FULL], page_size=16, vocab_size=program.vocab_size)
    parameters = random_parameters(program, np.random.default_rng(13), weights="int8")
    (head,) = parameters.segments("head")
    parameters.strips(head)[:] = 0
    with Runtime(program, parameters, paging.caches, [FULL], page_size=16, max_tokens=32) as runtime:
        for _ in range(3):
            np.testing.assert_array_equal(runtime.step(wanting(paging.batch({0: 1}), 1)), np.zeros((1, 1024)))


def test_a_step_that_asks_for_no_hidden_states_has_none(small):
    """Those of the step before are gone."""
    runtime, paging = small
    batch = paging.batch({0: 4})
    runtime.step(dataclasses.replace(batch, hidden_rows=np.arange(4)))
    assert runtime.hidden_states().shape == (4, 64)
    runtime.step(batch)
    assert runtime.hidden_states().shape == (0, 64)


@pytest.mark.parametrize("isa", USABLE)
def test_hidden_states_without_a_norm_are_what_the_head_reads(isa, random_parameters, make_paging):
    """A head that norms nothing reads the residual stream; its logits are products with the hidden states."""
    builder = ProgramBuilder(vocab_size=40, hidden_size=24, eps=1e-5)
    x = builder.embed("embedding")
    qkv = builder.linear(x, "qkv", 3 * 16, out="qkv")
    builder.add_linear(builder.attention(qkv, layer=0, heads=1, kv_heads=1, head_size=16), "output", to=x)
    program = builder.head(x, "head")
    groups = [LayerGroup(kind="full", window=None, layers=(0,))]
    parameters = random_parameters(program, np.random.default_rng(2))
    paging = make_paging(np.random.default_rng(3), groups, page_size=16, vocab_size=40)
    batch = dataclasses.replace(paging.batch({0: 9, 1: 1}, every_row=True), hidden_rows=np.arange(10))
    with Runtime(program, parameters, paging.caches, groups, page_size=16, max_tokens=16, isa=isa) as runtime:
        logits = runtime.step(batch)
        np.testing.assert_allclose(runtime.hidden_states() @ parameters.values("head").T, logits, rtol=1e-4, atol=1e-5)


def test_steps_without_logits_and_empty_steps(small):
    """Keys and values of a step without logits are there for the next one; a step of nothing is harmless."""
    runtime, paging = small
    batch = paging.batch({0: 4, 1: 2}, every_row=True)
    assert runtime.step(dataclasses.replace(batch, logit_rows=np.empty(0, dtype=np.int64))).shape == (0, 99)
    nothing = dataclasses.replace(
        batch,
        token_ids=batch.token_ids[:0],
        positions=batch.positions[:0],
        query_starts=batch.query_starts[:1],
        seq_lens=batch.seq_lens[:0],
        block_tables=batch.block_tables[:0],
        slot_mapping=batch.slot_mapping[:0],
        logit_rows=batch.logit_rows[:0],
    )
    assert runtime.step(nothing).shape == (0, 99)


def test_a_prompt_in_parts_without_logits(small):
    """A prompt whose first part asks for no logits ends in those of the prompt as a whole."""
    runtime, paging = small
    first = paging.batch({0: 20})
    second = paging.batch({0: 3})
    runtime.step(dataclasses.replace(first, logit_rows=np.empty(0, dtype=np.int64)))
    parted = runtime.step(second).copy()
    runtime.step(first)
    np.testing.assert_allclose(parted, runtime.step(second), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("use", [True, False])
def test_a_forked_process_neither_waits_nor_differs(use, random_parameters, make_paging):
    """Threads do not survive a fork: the child computes the same with new ones, and frees nothing it cannot."""
    program = PROGRAMS["llama"]
    parameters = random_parameters(program, np.random.default_rng(0))
    paging = make_paging(np.random.default_rng(5), [FULL], page_size=16, vocab_size=program.vocab_size)
    with Runtime(program, parameters, paging.caches, [FULL], page_size=16, max_tokens=80, threads=3) as runtime:
        batch = paging.batch({0: 20}, every_row=True)
        expected = runtime.step(batch).copy()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(20)
                same = not use or (np.array_equal(runtime.step(batch), expected))
                runtime.close()
                status = 0 if same else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(runtime.step(batch), expected)


def test_copied_pages_serve_as_the_originals(small):
    """A sequence may go on from copies of another's pages, also where copies follow each other."""
    runtime, paging = small
    paging.batch({0: 0})  # the sequence exists, without pages
    first = paging.batch({0: 20})
    runtime.step(first)
    decode = paging.batch({0: 1})
    expected = runtime.step(decode).copy()
    pages = decode.block_tables[0, :2].tolist()
    between, copies = paging.free[0][:2], paging.free[0][2:4]
    runtime.step(first)
    runtime.copy_pages(0, [pages[0], between[0], pages[1]], [between[0], copies[0], copies[1]])
    tables = decode.block_tables.copy()
    tables[0, :2] = copies
    slots = np.array([copies[1] * 16 + 20 % 16])
    copied = runtime.step(dataclasses.replace(decode, block_tables=tables, slot_mapping=slots))
    np.testing.assert_array_equal(copied, expected)


def change(batch, name, index, value):
    array = getattr(batch, name).copy()
    array[index] = value
    return dataclasses.replace(batch, **{name: array})


@pytest.mark.parametrize(
    "name, index, value, match",
    [
        ("token_ids", 0, 99, r"token_ids must be in 0\.\.98, got 99"),
        ("token_ids", 1, -1, r"token_ids must be in 0\.\.98, got -1"),
        ("logit_rows", 0, 6, r"logit_rows must be in 0\.\.5, got 6"),
        ("logit_rows", 0, -1, r"logit_rows must be in 0\.\.5"),
        ("hidden_rows", 1, 6, r"hidden_rows must be in 0\.\.5, got 6"),
        ("hidden_rows", 0, -1, r"hidden_rows must be in 0\.\.5, got -1"),
        ("slot_mapping", 2, 3200, r"slot_mapping must be in 0\.\.3199, got 3200"),
        ("slot_mapping", 2, -5, r"slot_mapping must be in 0\.\.3199"),
        ("positions", 1, 7, "positions must be the last of each sequence"),
        ("positions", 1, -1, "positions must be the last of each sequence"),
        ("query_starts", 1, 0, "query_starts must rise from 0 to the 6 tokens"),
        ("query_starts", 1, 9, "query_starts must rise from 0 to the 6 tokens"),
        ("query_starts", 0, 1, "query_starts must rise from 0 to the 6 tokens"),
        ("query_starts", 2, 5, "query_starts must rise from 0 to the 6 tokens"),
        ("seq_lens", 0, 2, r"have \[4, 2\] in this step"),
        ("seq_lens", 0, 2**31 - 1, "positions must be the last of each sequence"),
        ("seq_lens", 1, -3, r"have \[4, 2\] in this step"),
        ("block_tables", (1, 0), -1, "page 0 of sequence 1 is -1, of 200 pages"),
        ("block_tables", (0, 0), 200, "page 0 of sequence 0 is 200, of 200 pages"),
    ],
)
def test_numbers_out_of_range_are_refused(name, index, value, match, small):
    """Whatever could lead native code out of bounds is a ValueError, and the runtime goes on afterwards."""
    runtime, paging = small
    batch = dataclasses.replace(paging.batch({0: 4, 1: 2}), hidden_rows=np.arange(2))
    with pytest.raises(ValueError, match=match):
        runtime.step(change(batch, name, index, value))
    assert np.isfinite(runtime.step(batch)).all()


def test_tables_too_short_for_a_sequence_are_refused(small):
    """A sequence that has more tokens than its row of the block tables has places."""
    runtime, paging = small
    batch = paging.batch({0: 20})
    with pytest.raises(ValueError, match="block_tables of 1 pages do not hold 20 tokens"):
        runtime.step(dataclasses.replace(batch, block_tables=batch.block_tables[:, :1].copy()))


@pytest.mark.parametrize(
    "name, make, match",
    [
        ("token_ids", lambda a: a.astype(np.int32), r"token_ids must be int64 \(6,\), got int32"),
        ("positions", lambda a: a[:-1], r"positions must be int64 \(6,\), got int64 \(5,\)"),
        ("query_starts", lambda a: a[:-1], r"query_starts must be int32 \(3,\)"),
        ("logit_rows", lambda a: a[:, None], "logit_rows must be int64"),
        ("hidden_rows", lambda _: np.arange(2, dtype=np.int32), r"hidden_rows must be int64 \(2,\), got int32"),
        ("largest_wanted", lambda _: np.ones(2), r"largest_wanted must be int32 \(2,\), got float64"),
        ("largest_wanted", lambda _: np.ones(1, dtype=np.int32), r"largest_wanted must be int32 \(2,\), got int32"),
        ("slot_mapping", lambda a: np.repeat(a, 2)[::2], "slot_mapping must be int64 .* with gaps"),
        ("block_tables", lambda a: a[0], r"block_tables must be int32 \(2, 2\), got int32 \(2,\)"),
        ("others", lambda _: (None,), "tables of 2 groups, the cache has 1"),
    ],
)
def test_arrays_of_another_kind_are_refused(name, make, match, small):
    """Native code reads arrays by address: their dtype, shape and layout must be what the contract says."""
    runtime, paging = small
    batch = paging.batch({0: 4, 1: 2})
    with pytest.raises(ValueError, match=match):
        runtime.step(dataclasses.replace(batch, **{name: make(getattr(batch, name))}))


def test_steps_beyond_the_runtime_are_refused(small):
    """Intermediate rows are there for max_tokens; a closed runtime refuses everything."""
    runtime, paging = small
    with pytest.raises(ValueError, match="33 tokens, 1 logit rows and 0 hidden rows, and the runtime was made for 32"):
        runtime.step(paging.batch({0: 33}))
    with pytest.raises(ValueError, match="1 tokens, 1 logit rows and 33 hidden rows"):
        runtime.step(dataclasses.replace(paging.batch({1: 1}), hidden_rows=np.zeros(33, dtype=np.int64)))
    with pytest.raises(ValueError, match=r"group 0 has pages 0\.\.199, not 200"):
        runtime.copy_pages(0, [0], [200])
    runtime.close()
    runtime.close()
    with pytest.raises(ValueError, match="the runtime is closed"):
        runtime.step(paging.batch({1: 1}))


def sampling(draws, **changes):
    fields = {
        "rows": np.arange(draws),
        "bias": None,
        "repetition": None,
        "penalties": None,
        "masks": None,
        "temperature": np.zeros(draws, dtype=np.float32),
        "top_k": np.zeros(draws, dtype=np.int32),
        "typical_p": np.ones(draws, dtype=np.float32),
        "top_p": np.ones(draws, dtype=np.float32),
        "min_p": np.zeros(draws, dtype=np.float32),
        "uniforms": np.full(draws, 0.5),
    }
    return SamplingBatch(**fields | changes)


def test_sample_takes_the_most_likely_or_what_is_allowed(small):
    """Temperature 0 takes the first of the largest; a mask leaves the rest out."""
    runtime, _ = small
    logits = np.random.default_rng(0).normal(size=(3, 99)).astype(np.float32)
    np.testing.assert_array_equal(runtime.sample(logits, sampling(3)), logits.argmax(axis=1))
    masks = np.zeros((3, 4), dtype=np.int32)
    masks[:, 1] = 1 << 5
    np.testing.assert_array_equal(runtime.sample(logits, sampling(3, masks=masks)), [37, 37, 37])
    assert runtime.sample(logits, sampling(0)).shape == (0,)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"rows": np.array([0, 3])}, r"rows must be in 0\.\.2"),
        ({"rows": np.array([0, -1])}, r"rows must be in 0\.\.2"),
        ({"top_k": np.zeros(2)}, r"top_k must be int32 \(2,\), got float64"),
        ({"uniforms": np.zeros(1)}, r"uniforms must be float64 \(2,\), got float64 \(1,\)"),
        ({"masks": np.zeros((2, 3), dtype=np.int32)}, r"masks must be int32 \(2, 4\)"),
        ({"bias": object()}, "edits of logits must be made before sampling"),
    ],
)
def test_sampling_arrays_of_another_kind_are_refused(changes, match, small):
    """The same holds for what says how to draw."""
    runtime, _ = small
    with pytest.raises(ValueError, match=match):
        runtime.sample(np.zeros((3, 99), dtype=np.float32), sampling(2, **changes))
    with pytest.raises(ValueError, match=r"logits must be float32 \(R, 99\)"):
        runtime.sample(np.zeros((3, 98), dtype=np.float32), sampling(2))


def test_runtimes_that_cannot_be_are_refused(random_parameters):
    """Sizes without kernels, unknown names, layers without a group: each with its own sentence."""
    program = PROGRAMS["llama"]
    parameters = random_parameters(program, np.random.default_rng(0))
    caches = [CacheGroup(kind="full", num_pages=2)]

    def build(groups=(FULL,), caches=caches, **options):
        Runtime(program, parameters, caches, groups, **{"page_size": 16, "max_tokens": 8} | options)

    with pytest.raises(UnsupportedError, match="pages of 24 tokens with heads of 16 have no native kernels"):
        build(page_size=24)
    with pytest.raises(UnsupportedError, match="heads of 20"):
        page_bytes("f16", 16, 1, 20)
    with pytest.raises(ValueError, match="kv_format must be one of f16, bf16, int8, f32, got 'f8'"):
        build(kv_format="f8")
    with pytest.raises(ConfigError, match="none of that name"):
        build(isa="sse9")
    with pytest.raises(ValueError, match="layer 1 is in none of 1 groups"):
        build([LayerGroup(kind="full", window=None, layers=(0,))])
    with pytest.raises(ValueError, match="layers see all keys, and their group keeps 8"):
        build([LayerGroup(kind="window", window=8, layers=(0, 1))], [CacheGroup(kind="window", window=8, num_pages=2)])
    with pytest.raises(ValueError, match="1 caches for 2 groups"):
        build([FULL, FULL])
    with pytest.raises(ValueError, match="at least 1, got 0 and None"):
        build(max_tokens=0)
    for beyond in ({"max_tokens": 2**32 + 8}, {"threads": 2**32 + 1}):
        with pytest.raises(DoesNotFitError, match=f"{max(beyond.values())} .* are beyond what the native runtime can"):
            build(**beyond)


def test_limits_are_measured():
    """Something is read in some time."""
    limits = measure_limits(1, nbytes=2**22, repeats=1)
    assert limits["threads"] == 1
    assert limits["read_gb_per_s"] > 0
