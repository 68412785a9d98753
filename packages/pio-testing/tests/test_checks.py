"""The checks accept a sound model and catch each flaw that they are there for."""

import pytest
import torch

from inference_pio.interfaces import MANIFEST_NAME
from inference_pio.testing import (
    CAPABILITY_OF_CHECK,
    CHECK_NAMES,
    ParityError,
    check_parity,
    conformance_checks,
    load_model,
    load_reference,
    run_conformance,
)
from inference_pio.testing._compare import compare, first_different_row
from inference_pio.testing._trace import decoder_layers

# Which checks must fail for a flaw; all others must pass.
CAUGHT_BY = {
    None: set(),
    "theta": set(),
    "positions": {"step_by_step", "chunked", "batched", "paged"},
    "slots": {"batched", "paged"},
    "leak": {"step_by_step", "chunked", "batched", "paged"},
    "rows": {"step_by_step", "chunked", "batched", "paged", "logit_rows"},
    "nan": {"step_by_step", "chunked", "batched", "paged"},
}


@pytest.mark.parametrize("flaw", CAUGHT_BY)
def test_equivalence_checks_catch_what_they_are_for(toy, checkpoint, flaw):
    """A flaw of the cache fails the checks that exercise it and no other."""
    loaded = load_model(toy(flaw), checkpoint)
    caught = set()
    for name, check in conformance_checks().items():
        try:
            check(loaded)
        except ParityError:
            caught.add(name)
    assert caught == CAUGHT_BY[flaw]


def test_conformance_check_fixture_runs_them_all(toy, checkpoint, conformance_check):
    """One test of a plugin becomes one per check."""
    conformance_check(load_model(toy(), checkpoint))


def test_conformance_fixture(toy, checkpoint, conformance):
    """All checks at once, sound and flawed."""
    assert conformance is run_conformance
    conformance(toy(), checkpoint)
    with pytest.raises(ParityError, match="step by step against whole"):
        conformance(toy("positions"), checkpoint)


def test_every_check_has_a_function_and_a_capability():
    """The light list of names and the heavy functions agree."""
    checks = conformance_checks()
    assert tuple(checks) == CHECK_NAMES == tuple(CAPABILITY_OF_CHECK)
    assert all(check.__name__ == f"check_{name}" for name, check in checks.items())


def test_parity_of_a_sound_model(toy, checkpoint):
    """The toy is a Llama."""
    report = check_parity(toy(), checkpoint)
    assert report.tokens == 96
    assert report.max_abs_error < 2e-5
    assert report.spread > 0.5


def test_parity_accepts_a_loaded_reference(toy, checkpoint):
    """A reference that is at hand need not be loaded again."""
    assert check_parity(toy(), checkpoint, reference=load_reference(checkpoint), token_ids=[3, 4]).tokens == 2


@pytest.mark.parametrize(
    ("flaw", "where"),
    [
        ("theta", "the first decoder layer whose output differs is 0, first at row 1"),
        ("second-layer", "the first decoder layer whose output differs is 1, first at row 0"),
        ("no-final-norm", "all 3 decoder layers agree: look at the final norm and the head"),
        ("nan", "first row that differs is 0 of 96"),
    ],
)
def test_parity_says_where_a_model_parts(toy, checkpoint, flaw, where):
    """The report points at the layer, so that nobody has to bisect."""
    with pytest.raises(ParityError, match=where):
        check_parity(toy(flaw), checkpoint)


def test_parity_on_log_probabilities_ignores_a_shift(toy, checkpoint):
    """Logits that differ by a constant per row are the same distribution."""
    with pytest.raises(ParityError, match="logprobs of"):
        check_parity(toy("second-layer"), checkpoint, on="logprobs")
    assert check_parity(toy(), checkpoint, on="logprobs").max_abs_error < 2e-5


def test_compare_names_the_first_row():
    """Row, difference and both largest entries are in the message."""
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    actual = expected.clone()
    actual[1, 0] = 4.5
    with pytest.raises(ParityError, match=r"rows: off by up to 1\.5.*row.* 1 of 3 .*largest entry at 0, expected at 1"):
        compare("rows", actual, expected, tolerance=0.1)
    assert compare("rows", actual, expected, tolerance=1.5) == 1.5
    assert first_different_row(actual, expected, tolerance=0.1) == 1
    assert first_different_row(expected, expected, tolerance=0.0) is None


def test_compare_refuses_other_shapes_and_nan():
    """Neither a broadcast nor a NaN passes for agreement."""
    rows = torch.zeros(2, 3)
    with pytest.raises(ParityError, match=r"shape \(1, 3\), expected \(2, 3\)"):
        compare("rows", rows[:1], rows, tolerance=1.0)
    with pytest.raises(ParityError, match="off by up to nan"):
        compare("rows", rows * float("nan"), rows, tolerance=1.0)
    assert compare("no rows", rows[:0], rows[:0], tolerance=0.0) == 0.0


def test_gguf_needs_a_manifest_or_an_architecture(toy, tiny_checkpoint, tmp_path):
    """A plugin without a manifest cannot be asked which GGUF architectures it serves."""
    from inference_pio.testing import write_gguf

    path = write_gguf(tiny_checkpoint("llama"), tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=f"no {MANIFEST_NAME} beside"):
        load_model(toy(), path)


def test_a_model_without_decoder_layers_is_refused():
    """The trace needs to know the layers."""
    with pytest.raises(ValueError, match="Linear has no ModuleList of 3 decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2), 3)
