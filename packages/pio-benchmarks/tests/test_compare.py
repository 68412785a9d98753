"""``pio bench compare``: regressions are found, noise and other machines are not taken for them."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from inference_pio.benchmarks import Limits, Measurement, Ratio, write_record
from inference_pio.benchmarks._compare import compare, improvement, judge, newest
from inference_pio.interfaces import InvalidRequestError


@pytest.mark.parametrize(
    ("ratio", "better", "verdict"),
    [
        (Ratio(0.90, None, None), "higher", "worse"),
        (Ratio(0.90, 0.85, 0.97), "higher", "worse"),
        (Ratio(0.90, 0.85, 1.02), "lower", "unsure"),
        (Ratio(0.96, 0.95, 0.97), "higher", "same"),
        (Ratio(1.00, 0.50, 2.00), "higher", "same"),
        (Ratio(1.10, None, None), "lower", "better"),
        (Ratio(1.10, 1.01, 1.20), "lower", "better"),
        (Ratio(1.10, 0.99, 1.20), "lower", "unsure"),
        (Ratio(0.50, 0.49, 0.51), "neither", "not judged"),
        (None, "higher", "not judged"),
    ],
)
def test_verdicts_at_five_percent(ratio, better, verdict):
    """Beyond the threshold, and beyond doubt where doubt can be told."""
    assert judge(ratio, better, 0.05) == verdict


@pytest.mark.parametrize(
    ("before", "after", "better", "value"),
    [
        ((10.0,), (5.0,), "higher", 0.5),
        ((10.0,), (5.0,), "lower", 2.0),
        ((10.0,), (5.0,), "neither", 0.5),
        ((1.0, 2.0, 3.0), (4.0, 4.0), "higher", 2.0),
    ],
)
def test_above_one_is_better_whatever_the_unit(before, after, better, value):
    """Rates and times read alike."""
    ratio = improvement(Measurement("m", "u", before, better), Measurement("m", "u", after, better))
    assert ratio.value == pytest.approx(value)


def test_values_that_are_not_positive_have_no_ratio():
    """A waste of zero, say."""
    zero, one = Measurement("m", "%", (0.0,), "lower"), Measurement("m", "%", (1.0,), "lower")
    assert improvement(zero, one) is None
    assert improvement(one, zero) is None


def scaled(record, factor: float):
    """The record with the speed of its first measurement times ``factor``."""
    first, *others = record.measurements
    slower = dataclasses.replace(first, values=tuple(factor * value for value in first.values))
    return dataclasses.replace(record, measurements=(slower, *others))


def test_a_regression_fails_and_less_than_the_threshold_does_not(pio_bench, make_record, tmp_path):
    """Exit code 1 past it; the table names what became worse."""
    write_record(make_record(), tmp_path / "a.json")
    write_record(scaled(make_record(), 0.93), tmp_path / "b.json")
    worse = pio_bench("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert worse.code == 1
    assert "decode, batch 1" in worse.out
    assert worse.out.splitlines()[1].split()[-4:] == ["tokens/s", "0.93", "0.90..0.96", "worse"]
    assert worse.out.splitlines()[-1] == "0 better, 1 same, 0 unsure, 1 worse, 0 not judged"
    assert pio_bench("compare", tmp_path / "a.json", tmp_path / "b.json", "--threshold", "10%").code == 0
    assert pio_bench("compare", tmp_path / "b.json", tmp_path / "a.json").code == 0


def test_all_rows_are_shown_when_asked_for(pio_bench, make_record, tmp_path):
    """What stayed the same is left out otherwise."""
    write_record(make_record(), tmp_path / "a.json")
    few = pio_bench("compare", tmp_path / "a.json", tmp_path / "a.json")
    assert "load" not in few.out
    every = pio_bench("compare", tmp_path / "a.json", tmp_path / "a.json", "--all")
    assert [line.split()[-1] for line in every.out.splitlines()[1:3]] == ["same", "same"]


def test_the_json_has_everything(pio_bench, make_record, tmp_path):
    """Ratios, intervals, verdicts and notes."""
    write_record(make_record(), tmp_path / "a.json")
    write_record(scaled(make_record(settings={"model": "tiny", "rounds": 9}), 0.5), tmp_path / "b.json")
    done = pio_bench("compare", tmp_path / "a.json", tmp_path / "b.json", "--json")
    assert done.code == 1
    first, second = done.json["changes"]
    assert (first["verdict"], first["model"], first["ratio"]) == ("worse", "tiny", pytest.approx(0.5))
    assert first["low"] < 0.5 < first["high"]
    assert second["verdict"] == "same"
    assert "pio-demo/gen of tiny: setting rounds: 5 before, 9 after" in done.json["notes"]


def test_folders_are_matched_by_package_benchmark_and_model(make_record):
    """The newest of several counts; what has no counterpart is told."""
    old = make_record()
    newer = dataclasses.replace(scaled(old, 0.5), date=old.date + timedelta(days=1))
    other = make_record(settings={"model": "large"})
    found = newest([newer, other, old])
    assert found["pio-demo", "gen", "tiny"] is newer
    comparison = compare([old], [newer, other], threshold=0.05)
    assert [change.verdict for change in comparison.changes] == ["worse", "same"]
    assert "only after: pio-demo/gen of large" in comparison.notes


def test_differences_beside_the_figures_are_told(make_record, machine):
    """Settings, versions, warnings, missing and changed measurements, and a machine that was slower itself."""
    before = make_record(
        measurements=(
            *make_record().measurements,
            Measurement("gone", "s", (1.0,), "lower"),
            Measurement("kept", "s", (1.0,), "lower"),
        )
    )
    after = make_record(
        machine=dataclasses.replace(machine, python="CPython 3.13.1"),
        measurements=(*make_record().measurements, Measurement("kept", "x", (1.0,), "neither")),
        limits=(Limits(1, 6.5, None, None, "numpy"),),
        warnings=(),
        date=datetime(2026, 11, 2, tzinfo=UTC),
    )  # fmt: skip
    notes = compare([before], [after], threshold=0.05).notes
    assert notes == (
        "pio-demo/gen of tiny: only before: gone",
        "pio-demo/gen of tiny: kept: s (lower is better) before, x (neither is better) after; not compared",
        "pio-demo/gen of tiny: before: other programs use 0.4 of 8 CPUs",
        "pio-demo/gen of tiny: python: CPython 3.11.7 before, CPython 3.13.1 after",
        "pio-demo/gen of tiny: the machine itself read 13.0 GB/s before and 6.5 after (1 threads)",
    )


@pytest.mark.parametrize("which", ["different", "unknown before", "unknown after"])
def test_other_machines_are_refused_unless_allowed(pio_bench, make_record, machine, tmp_path, which):
    """Exit code 2, with what differs; ``--different-machines`` goes on."""
    other = make_record(machine=dataclasses.replace(machine, cpu="Other CPU") if which == "different" else None)
    records = (other, make_record()) if which == "unknown before" else (make_record(), other)
    for name, record in zip("ab", records, strict=True):
        write_record(record, tmp_path / f"{name}.json")
    refused = pio_bench("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert refused.code == 2
    assert "--different-machines" in refused.err
    said = {
        "different": "records of different machines: cpu: Example CPU 9000, Other CPU",
        "unknown before": "the earlier record does not say on which machine",
        "unknown after": "the later record does not say on which machine",
    }
    assert said[which] in refused.err
    assert pio_bench("compare", tmp_path / "a.json", tmp_path / "b.json", "--different-machines").code == 0


def test_nothing_in_common_is_an_error(make_record):
    """Rather than a comparison that finds no regression."""
    with pytest.raises(InvalidRequestError, match="no measurement in common"):
        compare([make_record()], [make_record(benchmark="other")], threshold=0.05)


@pytest.mark.parametrize("text", ["5", "-1%", "x", "100%", "nan", "", "%"])
def test_thresholds_are_shares(pio_bench, make_record, tmp_path, text):
    """Of at least nothing and less than all."""
    write_record(make_record(), tmp_path / "a.json")
    done = pio_bench("compare", tmp_path / "a.json", tmp_path / "a.json", f"--threshold={text}")
    assert done.code == 2
    assert "is no share between 0 and 100 %" in done.err


def test_hostile_names_do_not_reach_the_terminal(pio_bench, make_record, tmp_path):
    """Control characters out of a file are spelled out."""
    name = "\x1b]0;owned\x07\r\nx"
    record = make_record(measurements=(Measurement(name, "s", (1.0,), "lower"),), warnings=(name,))
    write_record(record, tmp_path / "a.json")
    done = pio_bench("compare", tmp_path / "a.json", tmp_path / "a.json", "--all")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert "\\x1b]0;owned\\x07\\x0d\\x0ax" in done.out
