"""What is drafted follows from what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.core._speculation import SpeculationControl, StepCost, count_accepted


@pytest.mark.parametrize(
    ("drafts", "sampled", "accepted"),
    [
        ([], [5], 0),
        ([5], [5, 6], 1),
        ([5], [4, 6], 0),
        ([5, 6, 7], [5, 6, 7, 8], 3),
        ([5, 6, 7], [5, 9, 7, 8], 1),
        ([5, 6, 7], [9, 6, 7, 8], 0),
    ],
)
def test_leading_agreement_is_accepted(drafts, sampled, accepted):
    """Only drafts before the first disagreement count."""
    assert count_accepted(drafts, sampled) == accepted


def test_samples_without_room_for_the_bonus_are_refused():
    """k drafts are verified by k + 1 samples."""
    with pytest.raises(ValueError, match="2 drafts need 3 samples, got 2"):
        count_accepted([1, 2], [1, 2])


class Machine:
    """A simulated engine: step times by a function of rows, drafts accepted with a given probability."""

    def __init__(
        self, seconds, acceptance, *, max_draft=8, keys=("a",), draft_s=0.0, catch_up_s=0.0, noise=0.0, seed=0
    ):
        self.control = SpeculationControl(max_draft)
        self.seconds, self.acceptance, self.draft_s, self.noise = seconds, acceptance, draft_s, noise
        self.catch_up_s, self.behind = catch_up_s, 0
        self.keys = keys
        self.generator = np.random.default_rng(seed)
        self.time = 0.0
        self.tokens = 0

    def run(self, steps, *, prefill=0):
        drafted = []
        for _ in range(steps):
            lengths = self.control.draft_lengths(self.keys, other_rows=prefill)
            drafted.append(sum(lengths))
            rows = prefill + len(self.keys) + sum(lengths)
            seconds = self.seconds(rows) * (1 + self.noise * self.generator.exponential())
            proposing = self.draft_s * sum(lengths)
            if sum(lengths):
                proposing += self.catch_up_s * self.behind
            self.behind = 0 if sum(lengths) else self.behind + 1
            self.time += seconds + proposing
            self.control.observe_draft(proposing, sum(lengths))
            self.control.observe_step(rows, len(self.keys) + (prefill > 0), seconds)
            for key, length in zip(self.keys, lengths, strict=True):
                share = self.acceptance[key] if isinstance(self.acceptance, dict) else self.acceptance
                hits = self.generator.random(length) < share
                accepted = int(np.cumprod(hits).sum())
                self.tokens += accepted + 1
                self.control.observe(key, length, accepted)
        return drafted


def flat(rows):
    return 0.01


def linear(rows):
    return 0.01 * rows


def affine(rows):
    return 0.01 + 0.001 * rows


def test_control_drafts_where_rows_are_free():
    """With a flat step and good drafts everything that may be drafted is."""
    machine = Machine(flat, 0.8)
    drafted = machine.run(300)
    assert drafted[-50:].count(8) >= 49  # one step in 256 may be plain
    assert machine.tokens / machine.time > 3.5 / 0.01


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.8])
def test_control_is_off_where_rows_cost_in_full(acceptance):
    """Where a row costs a step nothing is drafted but the trials, which cost at most 2% of the time."""
    machine = Machine(linear, acceptance)
    machine.run(50)
    machine.time, machine.tokens = 0.0, 0
    drafted = machine.run(1000)
    assert sum(count > 0 for count in drafted) <= 10
    assert machine.tokens / machine.time > 0.98 / 0.01


def test_control_is_off_where_nothing_is_accepted():
    """Free rows do not make useless drafts worth it; at most every tenth step is a trial."""
    machine = Machine(flat, 0.0)
    machine.run(100)
    drafted = machine.run(500)
    assert sum(count > 0 for count in drafted) <= 50
    assert max(drafted) <= 3


def test_control_is_off_where_the_draft_model_is_slow():
    """A draft token that costs a step of the target is not drafted."""
    machine = Machine(flat, 0.8, draft_s=0.02)
    machine.run(50)
    drafted = machine.run(500)
    assert sum(count > 0 for count in drafted) <= 10


def test_control_recovers_when_acceptance_returns():
    """After a long time off, text that can be guessed turns drafting on again within some fifty steps."""
    machine = Machine(flat, 0.0)
    machine.run(500)
    machine.acceptance = 0.9
    drafted = machine.run(150)
    assert np.mean(drafted[-50:]) > 6


def test_catching_up_in_trials_does_not_hide_a_cheap_draft_model():
    """While it is off a draft model falls behind, and the first step of a trial pays for reading all that."""
    machine = Machine(flat, 0.0, draft_s=0.0002, catch_up_s=0.001)
    machine.run(400)
    machine.acceptance = 0.9
    machine.run(300)
    assert np.mean(machine.run(50)) > 6


def test_control_recovers_when_rows_become_cheap():
    """As when other sequences end and a step no longer computes at its limit."""
    machine = Machine(linear, 0.8)
    machine.run(500)
    machine.seconds = flat
    drafted = machine.run(1500)
    assert np.mean(drafted[-50:]) > 4


def test_control_turns_off_when_rows_become_dear():
    """The other way is quick: the steps that show it are the ones that are made."""
    machine = Machine(flat, 0.8)
    machine.run(500)
    machine.seconds = linear
    machine.run(100)
    drafted = machine.run(500)
    assert sum(count > 0 for count in drafted) <= 15


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.9])
def test_control_nears_the_best_fixed_length(acceptance):
    """In noise, and with prompts in some steps, it is within a tenth of the best constant length."""
    machine = Machine(affine, acceptance, noise=0.3, seed=5)
    for _ in range(60):
        machine.run(9)
        machine.run(1, prefill=200)
    machine.time, machine.tokens = 0.0, 0
    machine.run(800)
    lengths = np.arange(9)
    expected = (1 - acceptance ** (lengths + 1)) / (1 - acceptance)
    best = max(expected / (affine(1 + lengths) * 1.3))
    assert machine.tokens / machine.time > 0.9 * best


def test_each_sequence_gets_its_own_length():
    """Where a row has its price, sequences whose drafts are rejected are left alone, the others are not."""
    machine = Machine(affine, {"copies": 0.95, "writes": 0.05}, keys=("copies", "writes"))
    machine.run(200)
    lengths = [machine.control.draft_lengths(machine.keys, other_rows=0) for _ in range(20)]
    assert np.mean([copies for copies, _ in lengths]) > 5
    assert np.mean([writes for _, writes in lengths]) < 1


def test_slow_outlier_moves_nothing():
    """One step that took a hundred times as long does not change what is drafted."""
    machine = Machine(flat, 0.9)
    machine.run(100)
    machine.control.observe_step(9, 1, 1.0)
    machine.control.observe_step(1, 1, 1.0)
    assert machine.control.draft_lengths(["a"], other_rows=0) == [8]


def test_drafting_is_compared_with_a_plain_step_now_and_then():
    """While it is on, one step in 256 shows what plain decoding costs now."""
    machine = Machine(flat, 0.9)
    machine.run(20)
    assert machine.run(1024).count(0) in {3, 4}


def test_prompts_in_a_step_do_not_stop_drafting():
    """Steps that carry prompts of ever new lengths are drafted for as well: their price is read off the curve."""
    machine = Machine(flat, 0.9)
    machine.run(30)
    assert all(machine.run(1, prefill=rows) == [8] for rows in (3, 17, 90, 400, 3000))


def test_control_is_deterministic():
    """The same observations give the same lengths."""
    one, other = Machine(affine, 0.7, noise=0.5), Machine(affine, 0.7, noise=0.5)
    assert one.run(300) == other.run(300)


def test_trial_that_found_nothing_is_made_again():
    """A proposer without a guess has not used up the trial."""
    control = SpeculationControl(4)
    for _ in range(40):
        control.observe("a", 4, 0)
    for _ in range(30):
        control.observe_step(1, 1, 0.01)
    assert control.draft_lengths(["a"], other_rows=0) == [3]
    control.observe("a", 0, 0)
    assert control.draft_lengths(["a"], other_rows=0) == [3]
    control.observe("a", 1, 0)
    assert control.draft_lengths(["a"], other_rows=0) == [3]  # the second step of the trial
    control.observe("a", 1, 0)
    assert control.draft_lengths(["a"], other_rows=0) == [0]


def test_trials_take_turns():
    """While all is off, each sequence is tried in turn."""
    machine = Machine(flat, 0.0, keys=tuple("abc"))
    machine.run(100)
    tried = []
    for _ in range(200):
        lengths = machine.control.draft_lengths(machine.keys, other_rows=0)
        machine.control.observe_step(3 + sum(lengths), 3, 0.01)
        for key, length in zip(machine.keys, lengths, strict=True):
            machine.control.observe(key, length, 0)
            if length and tried[-1:] != [key]:
                tried.append(key)
    assert len(tried) >= 6
    assert {frozenset(tried[i : i + 3]) for i in range(len(tried) - 2)} == {frozenset("abc")}


def test_acceptance_counts_tokens_that_were_tried():
    """What came after a rejected token was not tried; a new sequence starts from the share of all."""
    control = SpeculationControl(4)
    assert control.acceptance("a") == 0.5
    for _ in range(200):
        control.observe("a", 4, 1)  # one accepted, one rejected, two never tried
    assert control.acceptance("a") == pytest.approx(0.5)
    for _ in range(200):
        control.observe("a", 4, 4)
    assert control.acceptance("a") > 0.97
    assert control.acceptance("new") == pytest.approx(control.acceptance("other"))
    assert control.acceptance("new") > 0.8
    control.forget("a")
    control.forget("a")
    assert control.acceptance("a") == control.acceptance("new")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_acceptance_estimate_is_unbiased_under_censoring(share):
    """However long the drafts, the estimate settles around the true share."""
    generator = np.random.default_rng(1)
    control = SpeculationControl(8)
    estimates = []
    for step in range(3000):
        length = int(generator.integers(1, 9))
        control.observe("a", length, int(np.cumprod(generator.random(length) < share).sum()))
        if step > 100:
            estimates.append(control.acceptance("a"))
    assert np.mean(estimates) == pytest.approx(share, abs=0.04)


def test_counters_add_up():
    """What the metrics show."""
    control = SpeculationControl(4)
    for proposed, accepted in [(4, 2), (0, 0), (2, 2), (3, 0)]:
        control.observe("a", proposed, accepted)
    stats = control.stats
    assert (stats.num_drafts, stats.draft_tokens, stats.accepted_tokens) == (3, 9, 4)
    assert stats.accepted_per_pos == [2, 2, 0, 0]


@settings(deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5),
    st.floats(0.0, 0.02),
    st.floats(0.0001, 0.02),
    st.integers(0, 50),
)
def test_lengths_maximise_the_stated_model(shares, slope, base, other_rows):
    """No other total at these acceptances promises more tokens per second (5% aside, where it stays off)."""
    control = SpeculationControl(3)
    keys = list(range(len(shares)))
    for key, share in zip(keys, shares, strict=True):
        for _ in range(20):
            control.observe(key, 10, round(10 * share))
    rows = other_rows + len(keys)
    for count in range(rows, rows + 3 * len(keys) + 1):
        control.observe_step(count, 1, base + slope * count)
    control._credit = 0.0  # no trial
    acceptances = [control.acceptance(key) for key in keys]

    def speed(lengths):
        expected = sum((1 - a ** (k + 1)) / (1 - a) for a, k in zip(acceptances, lengths, strict=True))
        return expected / float(control._cost.predict(np.array([rows + sum(lengths)]))[0])

    best = max(speed(lengths) for lengths in np.ndindex(*([4] * len(keys))))
    chosen = control.draft_lengths(keys, other_rows=other_rows)
    if any(chosen):
        assert speed(chosen) == pytest.approx(best)
    else:
        assert best <= 1.05 * speed(chosen) * (1 + 1e-9)


def test_step_cost_between_and_beyond_what_was_seen():
    """Free where one size was seen, interpolated between two, going on with the last slope beyond, never falling."""
    cost = StepCost()
    rows = np.array([1, 2, 5, 10])
    assert cost.predict(rows).tolist() == [1, 1, 1, 1]
    cost.observe(2, 0.02)
    assert cost.predict(rows).tolist() == [0.02] * 4
    cost.observe(5, 0.05)
    np.testing.assert_allclose(cost.predict(rows), [0.02, 0.02, 0.05, 0.10])
    cost.observe(100, 0.01)
    assert cost.predict(np.array([1000]))[0] == 0.01
    assert cost.age(2) == 2
    assert cost.age(3) is None
    for _ in range(8):
        cost.observe(2, 0.04)
    assert cost.predict(np.array([2]))[0] == 0.04


def test_bad_observations_are_refused():
    """A caller's mistakes do not become statistics."""
    control = SpeculationControl(2)
    with pytest.raises(ValueError, match="max_draft must be at least 0, got -1"):
        SpeculationControl(-1)
    with pytest.raises(ValueError, match=r"at least a row per sequence and takes time, got 1, 2 and 0\.1"):
        control.observe_step(1, 2, 0.1)
    with pytest.raises(ValueError, match="got 1, 1 and nan"):
        control.observe_step(1, 1, float("nan"))
    with pytest.raises(ValueError, match="between 0 and 2 drafts can be accepted, got 3"):
        control.observe("a", 2, 3)


def test_no_sequences_and_no_drafts():
    """An empty step and a control that may not draft give nothing."""
    assert SpeculationControl(2).draft_lengths([], other_rows=3) == []
    assert SpeculationControl(0).draft_lengths(["a", "b"], other_rows=0) == [0, 0]
