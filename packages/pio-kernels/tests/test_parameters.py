"""Parameters from the tensors of a checkpoint: what becomes what, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from inference_pio.interfaces import MalformedFileError, UnsupportedError, WeightMap, WeightRule
from inference_pio.kernels import ProgramBuilder, load_parameters, packed_nbytes


def program(*, tied=False, bias=False):
    """One layer of 4 query and 2 KV heads of 8, and a mixture of 3 experts."""
    builder = ProgramBuilder(vocab_size=40, hidden_size=32, eps=1e-6)
    x = builder.embed("embedding")
    qkv = builder.linear(x, "qkv", 64, out="qkv", norm="norm", bias="qkv_bias" if bias else None)
    builder.add_linear(builder.attention(qkv, layer=0, heads=4, kv_heads=2, head_size=8), "output", to=x)
    builder.add_linear(builder.gated(x, "gate_up", 96, out="inner"), "down", to=x)
    builder.experts(x, to=x, router="router", gate_up="experts_in", down="experts_out", inner_size=20, num_experts=3,
                    chosen=2)  # fmt: skip
    return builder.head(x, "embedding" if tied else "head")


RULES = (
    WeightRule(target="embedding", sources=("embed",)),
    WeightRule(target="norm", sources=("norm",)),
    WeightRule(target="qkv", sources=("q", "k", "v"), heads=(4, 2, 0)),
    WeightRule(target="qkv_bias", sources=("q_bias", "k_bias", "v_bias"), heads=(4, 2, 0), optional=True),
    WeightRule(target="output", sources=("o",)),
    WeightRule(target="gate_up", sources=("gate", "up")),
    WeightRule(target="down", sources=("down",)),
    WeightRule(target="router", sources=("router",)),
    WeightRule(target="experts_in", sources=("expert_gates", "expert_ups")),
    WeightRule(target="experts_out", sources=("expert_0", "expert_1", "expert_2")),
    WeightRule(target="head", sources=("head",), optional=True),
)
MAP = WeightMap(rules=RULES, ignore=(r"rope.*",))
SHAPES = {"embed": (40, 32), "norm": (32,), "q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32),
          "gate": (48, 32), "up": (48, 32), "down": (32, 48), "router": (3, 32), "expert_gates": (3, 20, 32),
          "expert_ups": (3, 20, 32), "expert_0": (32, 20), "expert_1": (32, 20), "expert_2": (32, 20),
          "head": (40, 32), "rope_freqs": (4,)}  # fmt: skip


@pytest.fixture
def filled(memory_source):
    """A source that the rules fit, in float32."""
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        memory_source.add_values(name, rng.normal(size=shape).astype(np.float32))
    return memory_source


def values_of(source, name):
    info, stored = source.tensors[name]
    return stored.view(np.float32).reshape(info.shape)


def half_split(rows, heads):
    """Rows of each head in the order a0 a1 ... b0 b1 ..., the long way."""
    out = []
    for head in rows.reshape(heads, -1, *rows.shape[1:]):
        out += [*head[0::2], *head[1::2]]
    return np.stack(out)


@pytest.mark.parametrize("weights", ["auto", "bf16", "int8"])
def test_the_size_is_known_before_anything_is_packed(filled, weights):
    """To the byte."""
    expected = packed_nbytes(program(), filled, MAP, tied_head=False, weights=weights)
    assert load_parameters(program(), filled, MAP, tied_head=False, weights=weights).nbytes == expected


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_made_as_the_rules_say(bias, filled):
    """Stacked, reordered by heads, joined expert by expert; each tensor's pages are released, once."""
    if bias:
        for name, rows in (("q_bias", 32), ("k_bias", 16), ("v_bias", 16)):
            filled.add_values(name, np.random.default_rng(rows).normal(size=rows).astype(np.float32))
    seen: list[tuple[int, int]] = []
    parameters = load_parameters(
        program(bias=bias), filled, MAP, tied_head=False, progress=lambda done, total: seen.append((done, total))
    )
    expected = {
        "embedding": values_of(filled, "embed"),
        "norm": values_of(filled, "norm"),
        "qkv": np.concatenate(
            [half_split(values_of(filled, "q"), 4), half_split(values_of(filled, "k"), 2), values_of(filled, "v")]
        ),
        "gate_up": np.concatenate([values_of(filled, "gate"), values_of(filled, "up")]),
        "experts_in": np.concatenate([values_of(filled, "expert_gates"), values_of(filled, "expert_ups")], axis=1),
        "experts_out": np.stack([values_of(filled, f"expert_{index}") for index in range(3)]),
    }
    if bias:
        q, k, v = (values_of(filled, f"{name}_bias") for name in "qkv")
        expected["qkv_bias"] = np.concatenate([half_split(q, 4), half_split(k, 2), v])
    for name, values in expected.items():
        np.testing.assert_array_equal(parameters.values(name), values)
    assert [part.rows for part in parameters.segments("qkv")] == [32, 16, 16]
    assert [part.rows for part in parameters.segments("experts_in")] == [20] * 6
    used = set(filled) - {"rope_freqs"}
    assert sorted(filled.released) == sorted(used)
    total = sum(filled.info(name).nbytes for name in used)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert set(parameters) == set(program(bias=bias).parameters)
    assert parameters.formats.keys() == {"F32"}
    assert not parameters.cached


def test_a_fused_gate_and_up_is_cut(filled):
    """One tensor that holds gate and up becomes two segments."""
    fused = np.random.default_rng(1).normal(size=(96, 32)).astype(np.float32)
    filled.add_values("gate", fused)
    del filled.tensors["up"]
    rules = tuple(dataclasses.replace(rule, sources=("gate",)) if rule.target == "gate_up" else rule for rule in RULES)
    parameters = load_parameters(program(), filled, dataclasses.replace(MAP, rules=rules), tied_head=False, threads=1)
    assert [part.rows for part in parameters.segments("gate_up")] == [48, 48]
    np.testing.assert_array_equal(parameters.values("gate_up"), fused)


def test_a_matrix_of_several_formats_keeps_them(filled, make_blocks):
    """Each source is a segment of its own format."""
    filled.add("v", "Q8_0", (16, 32), make_blocks(np.random.default_rng(0), "Q8_0", 16, 32))
    filled.add("k", "Q4_1", (16, 32), make_blocks(np.random.default_rng(0), "Q4_1", 16, 32))
    parameters = load_parameters(program(), filled, MAP, tied_head=False)
    assert [part.format.label for part in parameters.segments("qkv")] == ["F32", "Q4Min", "Q8"]
    assert parameters.nbytes % 64 == 0


@pytest.mark.parametrize(
    "encoding, weights, tile",
    [
        ("F64", "auto", "F32"),
        ("F32", "auto", "F32"),
        ("F16", "auto", "F16"),
        ("F64", "bf16", "BF16"),
        ("F32", "bf16", "BF16"),
        ("F16", "bf16", "BF16"),
        ("BF16", "bf16", "BF16"),
        ("F16", "int8", "Q8"),
        ("BF16", "int8", "Q8"),
    ],
)
def test_floats_become_what_is_asked_for(encoding, weights, tile, filled):
    """Within the precision of what they become; rows are reordered all the same."""
    values = np.random.default_rng(2).normal(size=(32, 32)).astype(np.float32)
    filled.add_values("q", values, encoding)
    parameters = load_parameters(program(), filled, MAP, tied_head=False, weights=weights)
    assert parameters.segments("qkv")[0].format.label == tile
    bound = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-7, "Q8": 0.03}[tile] * np.abs(values).max()
    assert np.abs(parameters.values("qkv")[:32] - half_split(values, 4)).max() <= bound


def test_tied_head_is_the_embedding(filled):
    """A checkpoint without a head fits a program that names the embedding for it; one with a head does not."""
    del filled.tensors["head"]
    parameters = load_parameters(program(tied=True), filled, MAP, tied_head=True)
    assert "head" not in parameters
    with pytest.raises(ValueError, match="tied_head is True, and the program's head is head, its table embedding"):
        load_parameters(program(), filled, MAP, tied_head=True)
    with pytest.raises(MalformedFileError, match=r"'head': missing, and parameter head \(40, 32\) is not tied"):
        load_parameters(program(), filled, MAP, tied_head=False)


def test_head_beside_a_tied_program_is_refused(filled):
    """The tensor would be left out in silence."""
    with pytest.raises(ValueError, match="fills 'head', which the program does not have: lower it untied"):
        load_parameters(program(tied=True), filled, MAP, tied_head=True)


@pytest.mark.parametrize(
    "name, shape, match",
    [
        ("o", None, r"tensor 'o': missing; parameter output \(32, 32\) is made from it"),
        ("o", (32, 16), r"tensor 'o': has shape \(32, 16\), but parameter output takes \(32, 32\)"),
        ("k", (16, 16), r"tensor 'k': has shape \(16, 16\), but parameter qkv takes rows of \(64, 32\)"),
        ("v", (17, 32), r"tensors of qkv: q \(32, 32\) \+ k \(16, 32\) \+ v \(17, 32\) have 65 rows"),
        ("q", (30, 32), r"its 30 rows of shape \(30, 32\) are not 4 heads of an even number of rows"),
        ("extra", (3,), r"tensor 'extra': no parameter of the model takes this tensor of shape \(3,\)"),
        ("expert_ups", (2, 20, 32), r"has shape \(2, 20, 32\), but parameter experts_in takes rows of"),
        ("expert_1", (32, 21), r"has shape \(32, 21\), but parameter experts_out takes rows of"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, shape, match, filled):
    """Before anything is packed, with the tensor and both shapes."""
    if shape is None:
        del filled.tensors[name]
    else:
        filled.add_values(name, np.zeros(shape, dtype=np.float32))
    with pytest.raises(MalformedFileError, match=match):
        load_parameters(program(), filled, MAP, tied_head=False)
    assert not filled.released


def test_maps_that_do_not_fit_are_refused(filled):
    """The model's mistakes are ValueErrors."""

    def load(rules):
        load_parameters(program(), filled, dataclasses.replace(MAP, rules=rules), tied_head=False)

    with pytest.raises(ValueError, match="fills 'other', which the program does not have"):
        load((*RULES, WeightRule(target="other", sources=("rope_freqs",))))
    with pytest.raises(ValueError, match="two rules for 'norm'"):
        load((*RULES, RULES[1]))
    with pytest.raises(ValueError, match="no rule for 'norm'"):
        load((RULES[0], *RULES[2:]))
    with pytest.raises(ValueError, match="the rule of 'norm' has 1 sources and 2 head counts"):
        load((dataclasses.replace(RULES[1], heads=(1, 2)), RULES[0], *RULES[2:]))
    with pytest.raises(ValueError, match="weights must be 'auto', 'bf16' or 'int8', got 'int4'"):
        load_parameters(program(), filled, MAP, tied_head=False, weights="int4")


def test_encodings_without_tiles_are_refused(filled):
    """With the way out; so is a matrix made of pieces that its operation cannot take."""
    filled.add("o", "IQ4_XS", (32, 256), np.zeros(32 * 136, dtype=np.uint8))
    filled.add_values("o", np.zeros((32, 32), dtype=np.float32))
    info, stored = filled.tensors["o"]
    filled.tensors["o"] = (dataclasses.replace(info, encoding="IQ4_XS"), stored)
    with pytest.raises(UnsupportedError, match=r"'o' is stored as IQ4_XS, which .* no tiles for \(executor='torch'"):
        load_parameters(program(), filled, MAP, tied_head=False)
    filled.tensors["o"] = (info, stored)
    for name in ("gate", "up"):
        filled.add_values(name, np.zeros((32, 32), dtype=np.float32))
    filled.add_values("third", np.zeros((32, 32), dtype=np.float32))
    rules = tuple(
        dataclasses.replace(rule, sources=("gate", "up", "third")) if rule.target == "gate_up" else rule
        for rule in RULES
    )
    with pytest.raises(UnsupportedError, match="gate_up is made of 4 tensors or parts of tensors"):
        load_parameters(program(), filled, dataclasses.replace(MAP, rules=rules), tied_head=False)
