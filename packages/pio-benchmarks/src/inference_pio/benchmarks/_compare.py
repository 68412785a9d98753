"""What became faster or slower between two sets of records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from inference_pio.benchmarks._machine import machine_differences
from inference_pio.benchmarks._statistics import Ratio, median, ratio_of_medians
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from inference_pio.benchmarks._limits import Limits
    from inference_pio.benchmarks._record import Measurement, Record

Verdict = Literal["better", "same", "unsure", "worse", "not judged"]
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Change:
    """One measurement before and after.

    Attributes:
        package: Of the record.
        benchmark: Of the record.
        model: That the record is about, or ``""``.
        name: Of the measurement.
        unit: Of the medians.
        before: Median of the earlier values.
        after: Median of the later values.
        ratio: How much better the later values are: above 1 is better, whatever the unit, and plainly later over
            earlier where neither direction is better. None where a value is not positive.
        verdict: See :func:`judge`.
    """

    package: str
    benchmark: str
    model: str
    name: str
    unit: str
    before: float
    after: float
    ratio: Ratio | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of records beside each other.

    Attributes:
        changes: Of all measurements that both have, in the order of the later set.
        notes: What a reader should know: what only one side has, which settings, versions and limits differ.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What became worse beyond the threshold and beyond doubt."""
        return tuple(change for change in self.changes if change.verdict == "worse")


def compare(
    before: Iterable[Record], after: Iterable[Record], *, threshold: float, different_machines: bool = False
) -> Comparison:
    """Hold records against earlier ones of the same package, benchmark and model; of several, the newest counts.

    Args:
        before: The earlier records.
        after: The later ones.
        threshold: Share by which speed may fall before it is a regression, at least 0 and below 1.
        different_machines: Compare all the same if the machines differ or are not known.

    Raises:
        InvalidRequestError: The records are of different or unknown machines, or have nothing in common.
    """
    old, new = newest(before), newest(after)
    shared = [key for key in new if key in old]
    if not different_machines:
        for key in shared:
            _require_same_machine(old[key], new[key])
    changes: list[Change] = []
    notes = [f"only before: {_title(key)}" for key in old if key not in new]
    notes += [f"only after: {_title(key)}" for key in new if key not in old]
    for key in shared:
        changes += _changes(old[key], new[key], threshold)
        notes += [f"{_title(key)}: {note}" for note in _notes(old[key], new[key])]
    if not changes:
        raise InvalidRequestError("the records have no measurement in common", hint="compare runs of one benchmark")
    return Comparison(tuple(changes), tuple(notes))


def newest(records: Iterable[Record]) -> dict[tuple[str, str, str], Record]:
    """The record with the latest date of each key, sorted by key; without dates, the last."""
    found: dict[tuple[str, str, str], Record] = {}
    for record in records:
        known = found.get(record.key)
        if known is None or (record.date or _NEVER) >= (known.date or _NEVER):
            found[record.key] = record
    return dict(sorted(found.items()))


def improvement(before: Measurement, after: Measurement) -> Ratio | None:
    """How much better ``after`` is, above 1 being better; None where a value is not positive."""
    if min(*before.values, *after.values) <= 0:
        return None
    if after.better == "lower":
        return ratio_of_medians(before.values, after.values, paired=False)
    return ratio_of_medians(after.values, before.values, paired=False)


def judge(ratio: Ratio | None, better: str, threshold: float) -> Verdict:
    """``worse`` if the ratio is below ``1 - threshold`` and its interval, where there is one, below 1.

    ``better`` likewise.
    ``unsure`` if the ratio is beyond the threshold but its interval holds 1: measure more rounds.
    """
    if ratio is None or better == "neither":
        return "not judged"
    if ratio.value < 1 - threshold:
        return "worse" if ratio.high is None or ratio.high < 1 else "unsure"
    if ratio.value > 1 / (1 - threshold):
        return "better" if ratio.low is None or ratio.low > 1 else "unsure"
    return "same"


def _changes(before: Record, after: Record, threshold: float) -> Iterator[Change]:
    old = {measurement.name: measurement for measurement in before.measurements}
    for measurement in after.measurements:
        earlier = old.get(measurement.name)
        if earlier is None or (earlier.unit, earlier.better) != (measurement.unit, measurement.better):
            continue
        ratio = improvement(earlier, measurement)
        yield Change(
            *after.key,
            name=measurement.name,
            unit=measurement.unit,
            before=median(earlier.values),
            after=median(measurement.values),
            ratio=ratio,
            verdict=judge(ratio, measurement.better, threshold),
        )


def _notes(before: Record, after: Record) -> Iterator[str]:
    old = {measurement.name: measurement for measurement in before.measurements}
    new = {measurement.name: measurement for measurement in after.measurements}
    for word, one, other in (("before", old, new), ("after", new, old)):
        missing = [name for name in one if name not in other]
        if missing:
            yield f"only {word}: {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if missing[3:] else "")
    for name, later in new.items():
        earlier = old.get(name, later)
        if (earlier.unit, earlier.better) != (later.unit, later.better):
            yield f"{name}: {_meaning(earlier)} before, {_meaning(later)} after; not compared"
    for name in sorted({*before.settings, *after.settings}):
        if before.settings.get(name) != after.settings.get(name):
            yield f"setting {name}: {before.settings.get(name)} before, {after.settings.get(name)} after"
    yield from _surroundings(before, after)


def _meaning(measurement: Measurement) -> str:
    return f"{measurement.unit} ({measurement.better} is better)"


def _surroundings(before: Record, after: Record) -> Iterator[str]:
    """How far the machines' software and speed differ."""
    for word, record in (("before", before), ("after", after)):
        for warning in record.warnings:
            yield f"{word}: {warning}"
    if before.machine is not None and after.machine is not None:
        versions = (
            ("python", before.machine.python, after.machine.python),
            ("system", before.machine.system, after.machine.system),
        )
        for name, one, other in versions:
            if one != other:
                yield f"{name}: {one} before, {other} after"
    yield from _limits(before.limits, after.limits)


def _limits(before: Sequence[Limits], after: Sequence[Limits]) -> Iterator[str]:
    old = {limits.threads: limits for limits in before}
    for limits in after:
        earlier = old.get(limits.threads)
        if earlier is not None and abs(limits.read_gb_s / earlier.read_gb_s - 1) > 0.1:
            yield (
                f"the machine itself read {earlier.read_gb_s:.1f} GB/s before and {limits.read_gb_s:.1f} after "
                f"({limits.threads} threads)"
            )


def _require_same_machine(before: Record, after: Record) -> None:
    title = _title(after.key)
    hint = "--different-machines compares them all the same"
    if before.machine is None or after.machine is None:
        side = "earlier" if before.machine is None else "later"
        raise InvalidRequestError(
            f"{title}: the {side} record does not say on which machine it was made",
            hint=f"pio bench run writes records that do; {hint}",
        )
    differences = machine_differences(before.machine, after.machine)
    if differences:
        raise InvalidRequestError(f"{title}: records of different machines: {'; '.join(differences)}", hint=hint)


def _title(key: tuple[str, str, str]) -> str:
    package, benchmark, model = key
    return f"{package}/{benchmark}" + (f" of {model}" if model else "")
