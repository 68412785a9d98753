"""The checks accept a sound model and catch each flaw that they are there for."""

import pytest
import torch

from inference_pio.attention import PagedKVCache
from inference_pio.attention._layer_pages import LayerPages
from inference_pio.cache._hashes import PageHasher
from inference_pio.core import _choose
from inference_pio.core._scheduler import Scheduler
from inference_pio.interfaces import MANIFEST_NAME, FinishReason, Logprob
from inference_pio.testing import (
    CAPABILITY_OF_CHECK,
    CHECK_NAMES,
    ParityError,
    _determinism,
    _engine_checks,
    check_deterministic,
    check_parity,
    check_preempted,
    check_prefix_hit,
    check_speculative,
    conformance_checks,
    load_model,
    load_reference,
    run_conformance,
)
from inference_pio.testing._compare import compare, first_different_row
from inference_pio.testing._engine_run import build_engine, make_request, run_requests
from inference_pio.testing._plain_decoding import judge
from inference_pio.testing._trace import decoder_layers

ENGINE = {"prefix_hit", "preempted", "speculative", "embed"}
LOGITS = {"step_by_step", "chunked", "batched", "paged", *ENGINE, "deterministic"}

# Which checks must fail for a flaw; all others must pass.
CAUGHT_BY = {
    None: set(),
    "theta": set(),
    "positions": LOGITS,
    "slots": {"batched", "paged", *ENGINE, "deterministic"},
    "leak": LOGITS,
    "rows": LOGITS | {"logit_rows"},
    "nan": LOGITS,
    "company": {"batched", "paged", *ENGINE, "deterministic"},
    "company-bits": {"deterministic"},
    "own-products": {"deterministic"},
}


@pytest.fixture
def caught(toy, checkpoint):
    """The names of the checks that fail for a flaw."""

    def run(flaw=None):
        loaded = load_model(toy(flaw), checkpoint)
        names = set()
        for name, check in conformance_checks().items():
            if name == "native":  # the toy has no lowering
                continue
            try:
                check(loaded)
            except ParityError:
                names.add(name)
        return names

    return run


@pytest.mark.parametrize("flaw", CAUGHT_BY)
def test_equivalence_checks_catch_what_they_are_for(caught, flaw):
    """A flaw of the model fails the checks that exercise it and no other."""
    assert caught(flaw) == CAUGHT_BY[flaw]


def test_copies_that_are_not_made(caught, monkeypatch):
    """Continuations of one prompt that write to what they believe to be their own copy of a page."""
    monkeypatch.setattr(PagedKVCache, "copy_pages", lambda *_args: None)
    assert caught() == {"prefix_hit", "deterministic"}


def test_slots_that_keep_what_was_written_first(caught, monkeypatch):
    """Pages are used again by whoever comes next, and drafts that were wrong are overwritten."""
    write = LayerPages.write

    def write_once(self, keys, values, slot_mapping):
        fresh = (self.key_pages.flatten(0, 1)[slot_mapping] == 1e4).all(dim=-1).all(dim=-1)
        write(self, keys[fresh], values[fresh], slot_mapping[fresh])

    monkeypatch.setattr(LayerPages, "write", write_once)
    assert caught() == {*ENGINE, "deterministic"}


def test_a_draft_too_many(caught, monkeypatch):
    """Accepting a draft that was not chosen."""
    monkeypatch.setattr(_choose, "count_accepted", lambda drafts, _sampled: len(drafts))
    assert caught() == {"speculative"}


def test_pages_found_for_other_tokens(caught, monkeypatch):
    """Pages that are told apart by how many tokens came before them, not by which."""
    extend = PageHasher.extend

    def count(self, digests, tokens, num_pages, root):
        extend(self, digests, [0] * len(tokens), num_pages, root)

    monkeypatch.setattr(PageHasher, "extend", count)
    assert caught() == {*ENGINE, "deterministic"}


def test_preemption_that_forgets_the_text(caught, monkeypatch):
    """What was generated before a sequence had to make room is computed again with the prompt."""
    preempt = Scheduler._preempt

    def forget(self, victim):
        preempt(self, victim)
        if len(victim.tokens) > victim.state.prompt_length:
            victim.tokens[-1] = 0

    monkeypatch.setattr(Scheduler, "_preempt", forget)
    assert caught() == {"preempted"}


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


def test_a_check_that_proves_nothing_fails(toy, checkpoint, monkeypatch):
    """An engine that never shares, preempts or accepts would pass every comparison."""
    loaded = load_model(toy(), checkpoint)
    build = _engine_checks.build_engine

    def generous(loaded, **options):
        return build(loaded, **{**options, "num_pages": 100, "prefix_caching": False, "drafting": None})

    for module in (_engine_checks, _determinism):
        monkeypatch.setattr(module, "build_engine", generous)
    for check, message in [
        (check_prefix_hit, "nothing was shared"),
        (check_preempted, "no sequence was preempted"),
        (check_speculative, "0 of 0 drafts were accepted"),
        (check_deterministic, "no prefix was found"),
    ]:
        with pytest.raises(ParityError, match=f"{message}.*so nothing is proved"):
            check(loaded)


def test_deterministic_names_the_position(toy, checkpoint):
    """Where the bits part, and what they are."""
    with pytest.raises(ParityError, match=r"in company, float32, round 0: 'long', continuation 0: .*token \d is"):
        check_deterministic(load_model(toy("company-bits"), checkpoint))


def test_pages_that_stay_taken_are_noticed(toy, checkpoint, monkeypatch):
    """An idle engine holds no page."""
    engine = build_engine(load_model(toy(), checkpoint), num_pages=8, page_size=4, max_model_len=8)
    monkeypatch.setattr(engine.cache, "release", lambda _pages: None)
    with pytest.raises(ParityError, match="of the cache are in use after the last request"):
        run_requests(engine, [make_request("only", [1, 2], max_tokens=2)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [5]}, "2 tokens wanted, got 1"),
        ({"token_ids": [5, 5]}, "log-probabilities: off by"),
        ({"finish_reason": FinishReason.STOP}, r"2 tokens wanted, got 2 \(stop\)"),
    ],
)
@pytest.mark.parametrize("seed", [None, 7])
def test_the_judge(toy, checkpoint, change, message, seed):
    """It accepts what plain decoding gives, and says what is wrong with anything else."""
    loaded = load_model(toy(), checkpoint)
    engine = build_engine(loaded, num_pages=8, page_size=4, max_model_len=8)
    request = make_request("only", [1, 2], max_tokens=2, seed=seed)
    (output,) = run_requests(engine, [request])
    judge("plain", loaded, request, output, tolerance=1e-4)
    for name, value in change.items():
        setattr(output.outputs[0], name, value)
    for token_id, position in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=False):
        position.setdefault(token_id, Logprob(0.0, 1))
    with pytest.raises(ParityError, match=message):
        judge("plain", loaded, request, output, tolerance=1e-4)


@pytest.mark.parametrize(
    ("seed", "message"),
    [(None, r"token 0 is \d+, and \d+ is more likely"), (7, r"token 0 is \d+, and its draw gives \d+")],
)
def test_the_judge_of_tokens(toy, checkpoint, seed, message):
    """Another token with its own, true log-probability is still another token."""
    loaded = load_model(toy(), checkpoint)
    engine = build_engine(loaded, num_pages=8, page_size=4, max_model_len=8)
    request = make_request("only", [1, 2], max_tokens=1, seed=seed, logprobs=20)
    (output,) = run_requests(engine, [request])
    completion = output.outputs[0]
    completion.token_ids = [next(token for token in completion.logprobs[0] if token != completion.token_ids[0])]
    with pytest.raises(ParityError, match=message):
        judge("plain", loaded, request, output, tolerance=1e-4)


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
