"""Programs refuse what contradicts itself, with the operation and the numbers."""

from __future__ import annotations

import pytest

from inference_pio.kernels import (
    Attention,
    Embed,
    Experts,
    Head,
    Linear,
    Norm,
    Program,
    ProgramBuilder,
    Rotary,
    Route,
)

BUFFERS = {"x": 8, "qkv": 16, "attention": 8, "rotary": 4, "scores": 6, "weights": 2, "numbers": 2, "inner": 10}
EMBED, HEAD = Embed(out="x", weight="table"), Head(input="x", weight="head")
ATTENTION = {"qkv": "qkv", "out": "attention", "layer": 0, "heads": 2, "kv_heads": 1, "head_size": 4, "scale": 0.5}
ROUTE = {"input": "scores", "weights": "weights", "experts": "numbers", "num_experts": 6, "chosen": 2}
EXPERTS = {"input": "x", "out": "x", "weights": "weights", "experts": "numbers", "inner": "inner", "inner_size": 5,
           "num_experts": 6, "chosen": 2, "gate_up": "gate_up", "down": "down"}  # fmt: skip


def test_a_program_tells_its_parameters():
    """Names and shapes, each once; a table that is the head as well is one parameter."""
    ops = (
        EMBED,
        Linear(input="x", out="qkv", weight="qkv", rows=16, bias="qkv_bias", norm=Norm(weight="norm", eps=1e-6)),
        Attention(**ATTENTION, query_norm=Norm(weight="q", eps=1e-6), sinks="sinks"),
        Linear(input="attention", out="scores", weight="router", rows=6),
        Route(**ROUTE, bias="route_bias"),
        Experts(**EXPERTS, norm=Norm(weight="expert_norm", eps=1e-6)),
        Head(input="x", weight="table", norm=Norm(weight="last", eps=1e-6)),
    )
    assert Program(ops, BUFFERS, 40).parameters == {
        "table": (40, 8),
        "qkv": (16, 8),
        "qkv_bias": (16,),
        "norm": (8,),
        "q": (4,),
        "sinks": (2,),
        "router": (6, 8),
        "route_bias": (6,),
        "gate_up": (6, 10, 8),
        "down": (6, 8, 5),
        "expert_norm": (8,),
        "last": (8,),
    }


@pytest.mark.parametrize(
    "ops, match",
    [
        ((), "a program ends with its head"),
        ((EMBED,), "a program ends with its head"),
        ((HEAD, HEAD), "operation 0, Head: a program has one head"),
        ((Embed(out="y", weight="table"), HEAD), "operation 0, Embed: no buffer 'y'"),
        ((Rotary(out="rotary", frequencies=(1.0,)), HEAD), "1 frequencies do not fill a buffer of width 4"),
        (
            (Rotary(out="rotary", frequencies=(1.0, 2.0), long_frequencies=(1.0,)), HEAD),
            "1 long frequencies beside 2",
        ),
        ((Linear(input="x", out="qkv", weight="w", rows=15), HEAD), "15 rows do not fill a buffer of width 16"),
        (
            (Linear(input="x", out="x", weight="w", rows=17, epilogue="gated"), HEAD),
            "17 rows do not fill a buffer of width 8",
        ),
        ((Attention(**ATTENTION | {"kv_heads": 3}), HEAD), "2 query heads on 3 KV heads"),
        ((Attention(**ATTENTION | {"head_size": 3}), HEAD), "a row of 'qkv' holds 16 numbers"),
        ((Attention(**ATTENTION | {"out": "scores"}), HEAD), "a row of 'scores' holds 6 numbers"),
        ((Attention(**ATTENTION, rotary="scores"), HEAD), "6 turned dimensions in heads of 4"),
        ((Attention(**ATTENTION, window=0), HEAD), "a window of 0 keys"),
        ((Route(**ROUTE | {"chosen": 7}), HEAD), "7 of 6 experts"),
        ((Route(**ROUTE | {"input": "x"}), HEAD), "a row of 'x' holds 8 scores"),
        ((Route(**ROUTE | {"weights": "x"}), HEAD), "rows of 'x' and 'numbers' do not hold 2 choices"),
        ((Experts(**EXPERTS | {"inner": "x"}), HEAD), "a row of 'x' holds 8 numbers"),
        ((Experts(**EXPERTS | {"experts": "x"}), HEAD), "rows of 'weights' and 'x' do not hold 2 choices"),
        ((Experts(**EXPERTS | {"out": "qkv"}), HEAD), "rows of 'x' hold 8 numbers, those of 'qkv' 16"),
        (
            (EMBED, Linear(input="x", out="qkv", weight="table", rows=16), HEAD),
            r"parameter 'table' is used as \(40, 8\) and as \(16, 8\)",
        ),
    ],
)
def test_programs_that_cannot_run_are_refused(ops, match):
    """Native code relies on these sizes."""
    with pytest.raises(ValueError, match=match):
        Program(ops, BUFFERS, 40)


def test_the_builder_refuses_a_buffer_of_two_widths():
    """A name stands for one buffer."""
    builder = ProgramBuilder(vocab_size=10, hidden_size=8, eps=1e-6)
    x = builder.embed("table")
    builder.linear(x, "a", 16, out="y")
    with pytest.raises(ValueError, match="buffer 'y' is 16 wide, and 24 numbers per row are to go there"):
        builder.linear(x, "b", 24, out="y")
