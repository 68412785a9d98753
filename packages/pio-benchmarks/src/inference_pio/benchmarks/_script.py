"""What a script ``bench_*.py --json FILE`` writes, as a record.

Such a script knows nothing of records: it writes ``{"benchmark", "package", "results", "machine"}`` with one object
``{"name", "value", "unit", ...}`` per result, and further keys as it likes. What it does not say is None in the record;
:mod:`._run` fills it in.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from inference_pio.benchmarks._fields import Fields, Scalar
from inference_pio.benchmarks._record import Better, Measurement, Record, better_from_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DURATIONS = frozenset({"s", "ms", "us", "ns"})
_SIZES = frozenset({"B", "bytes", "kB", "MB", "GB", "KiB", "MiB", "GiB"})
_OWN = frozenset({"name", "unit", "value", "values", "better", "bytes_per_unit", "ops_per_unit"})


def record_of_script(path: Path, document: Fields) -> Record:
    """The record of a script's result.

    Raises:
        MalformedFileError: One of the four keys is missing, or a result has no name, unit or finite value.
    """
    for key in ("benchmark", "package", "results", "machine"):
        if document.raw(key) is None:
            document.fail("is missing", key)
    results = [Fields(path, value, f"results[{index}]") for index, value in enumerate(document.items("results"))]
    return Record(
        benchmark=document.text("benchmark"),
        package=document.text("package"),
        version=None,
        settings=_settings(document),
        measurements=tuple(_with_unique_names([_measurement(result) for result in results])),
        machine=None,
        limits=(),
        date=None,
    )


def add_round(record: Record, later: Record) -> Record:
    """``record`` with the values of another run behind its own; what only one of the runs measured stays as it is."""
    values = {measurement.name: measurement.values for measurement in later.measurements}
    known = {measurement.name for measurement in record.measurements}
    grown = [
        dataclasses.replace(measurement, values=measurement.values + values.get(measurement.name, ()))
        for measurement in record.measurements
    ]
    fresh = [measurement for measurement in later.measurements if measurement.name not in known]
    return dataclasses.replace(record, measurements=(*grown, *fresh))


def better_of_unit(unit: str) -> Better:
    """What the unit says about which values are better: rates are to rise, durations and sizes to fall."""
    head, _, divisor = unit.partition("/")
    if divisor in {"s", "sec", "second"}:
        return "higher"
    return "lower" if head in _DURATIONS or head in _SIZES else "neither"


def _settings(document: Fields) -> dict[str, Scalar]:
    settings = document.raw("settings")
    found = {} if settings is None else dict(document.mapping("settings"))
    found |= document.rest({"benchmark", "package", "results", "machine", "settings"})
    threads = document.mapping("machine").get("threads")
    if threads is not None:
        found.setdefault("threads", threads)
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: object) -> Scalar:
    """A setting as a scalar: lists and objects of a script's settings are kept as their text."""
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _measurement(fields: Fields) -> Measurement:
    unit = fields.text("unit")
    return Measurement(
        name=fields.text("name"),
        unit=unit,
        values=fields.numbers("values") if fields.raw("values") is not None else (fields.number("value"),),
        better=better_of_unit(unit) if fields.raw("better") is None else better_from_json(fields),
        bytes_per_unit=fields.optional_positive("bytes_per_unit"),
        ops_per_unit=fields.optional_positive("ops_per_unit"),
        details={name: _plain(value) for name, value in fields.rest(_OWN).items()},
    )


def _with_unique_names(measurements: list[Measurement]) -> list[Measurement]:
    """The same measurements, those that share a name told apart by their details, or else by their number."""
    names = [measurement.name for measurement in measurements]
    long = [
        measurement.name if names.count(measurement.name) == 1 else _long_name(measurement.name, measurement.details)
        for measurement in measurements
    ]
    seen: dict[str, int] = {}
    unique: list[Measurement] = []
    for name, measurement in zip(long, measurements, strict=True):
        seen[name] = count = seen.get(name, 0) + 1
        renamed = name if count == 1 else f"{name} #{count}"
        unique.append(dataclasses.replace(measurement, name=renamed))
    return unique


def _long_name(name: str, details: Mapping[str, Scalar]) -> str:
    """``name`` and the details that are no measured numbers: words, counts and switches."""
    parts = [f"{key}={value}" for key, value in details.items() if isinstance(value, (str, int))]
    return ", ".join([name, *parts])
