"""The check of the native executor accepts a sound lowering and catches a wrong one."""

import dataclasses

import pytest

from inference_pio.interfaces import UnsupportedError
from inference_pio.kernels import Attention, Embed, Head, Linear, Program, Runtime
from inference_pio.models.llama import PLUGIN
from inference_pio.testing import ParityError, check_native, conformance_checks, load_model


class Planted:
    """Llama with a lowering that ``change`` has altered, operation by operation."""

    def __init__(self, change):
        self.change = change

    def __getattr__(self, name):
        return getattr(PLUGIN, name)

    def parse_config(self, raw, *, ignore_unknown=False):
        return PLUGIN.parse_config(raw, ignore_unknown=ignore_unknown)

    def lower(self, config, *, tied_head):
        program = PLUGIN.lower(config, tied_head=tied_head)
        return Program(tuple(map(self.change, program.ops)), program.buffers, program.vocab_size)


FLAWS = {
    "scale of scores": (Attention, {"scale": 0.2}),
    "no rotary": (Attention, {"rotary": None}),
    "short window": (Attention, {"window": 5}),
    "activation": (Linear, {"activation": "gelu"}),
    "embedding": (Embed, {"scale": 1.001}),
    "head": (Head, {"scale": 1.01}),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_planted_bug_is_caught(tiny_checkpoint, flaw):
    """A program that is not the model."""
    kind, changes = FLAWS[flaw]

    def change(op):
        fits = isinstance(op, kind) and not (kind is Linear and op.epilogue != "gated")
        return dataclasses.replace(op, **changes) if fits else op

    with pytest.raises(ParityError, match=r"sequence \d of \d by the interpreter \(layout 0\) against the modules"):
        check_native(load_model(Planted(change), tiny_checkpoint("llama")))


def test_kernels_that_differ_are_caught(tiny_checkpoint, monkeypatch):
    """The interpreter is right, and what runs natively is not."""
    step = Runtime.step

    def drift(self, batch):
        logits = step(self, batch)
        return logits + 1e-3 * (len(batch.seq_lens) > 1)

    monkeypatch.setattr(Runtime, "step", drift)
    with pytest.raises(ParityError, match=r"sequence \d of \d by \w+ kernels \(layout 0\) against the modules"):
        check_native(load_model(PLUGIN, tiny_checkpoint("llama")))


def test_copies_that_are_not_made_natively(tiny_checkpoint, monkeypatch):
    """Continuations of one prompt that write to what they believe to be their own copy of a page."""
    monkeypatch.setattr(Runtime, "copy_pages", lambda *_args: None)
    with pytest.raises(ParityError, match="shared prefixes"):
        check_native(load_model(PLUGIN, tiny_checkpoint("llama")))


def test_what_cannot_be_checked(toy, checkpoint, tiny_checkpoint):
    """A plugin without a lowering, and a checkpoint whose tiles are not float32."""
    with pytest.raises(UnsupportedError, match=r"ToyPlugin has no lower\(\)"):
        check_native(load_model(toy(), checkpoint))
    with pytest.raises(UnsupportedError, match="a checkpoint in float32 is wanted, and this one has BF16"):
        check_native(load_model(PLUGIN, tiny_checkpoint("llama", dtype="bfloat16")))


def test_the_kit_has_the_check():
    """Under the name of the capability."""
    assert conformance_checks()["native"] is check_native
