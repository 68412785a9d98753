"""Records: what was measured, of what, where, when, and against which limits; their JSON, read strictly.

Format 1 is one object per file::

    {"schema": 1, "benchmark": str, "package": str, "version": str | null, "date": ISO 8601 with zone | null,
     "settings": {str: scalar}, "results": [...], "machine": {...} | null, "limits": [...], "warnings": [str]}

Each of ``results`` is ``{"name", "unit", "values": [number, ...], "better": "higher" | "lower" | "neither",
"bytes_per_unit": number | null, "ops_per_unit": number | null, "details": {str: scalar}}``.

The object that a script ``bench_*.py --json FILE`` writes has no ``schema``; it is read as well: see :mod:`._script`.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inference_pio.benchmarks._fields import Fields, Scalar, read_object
from inference_pio.benchmarks._limits import Limits, limits_from_json, limits_to_json
from inference_pio.benchmarks._machine import Machine, machine_from_json, machine_to_json
from inference_pio.interfaces import ModelNotFoundError, PioError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCHEMA = 1
Better = Literal["higher", "lower", "neither"]
_BETTER: tuple[Better, ...] = ("higher", "lower", "neither")

_KEYS = (
    "schema", "benchmark", "package", "version", "date", "settings", "results", "machine", "limits", "warnings",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measurement:
    """One quantity, measured one or more times.

    Attributes:
        name: What was measured; unique within its record.
        unit: Of the values: ``"tokens/s"``, ``"ms"``, ``"x"`` for a ratio.
        values: One per round, in the order of the rounds, so that two measurements of a record can be paired.
        better: Whether higher or lower values are better, or neither can be said; the last is never a regression.
        bytes_per_unit: Bytes that must be read from memory per unit of work (per token, say), or None.
        ops_per_unit: Arithmetic operations per unit of work, a multiply-add being 2, or None.
        details: What distinguishes this measurement from its neighbours, for plots and tables. Known keys: ``phase``
            (``"decode"`` or ``"prefill"``), ``batch``, ``context``, ``threads``, ``engine``, ``format``, ``model``, and
            ``arithmetic`` (``"int8"`` or ``"fp32"``), which says what limit the operations are held to.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    better: Better
    bytes_per_unit: float | None = None
    ops_per_unit: float | None = None
    details: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """A run of one benchmark.

    Attributes:
        benchmark: Name of the benchmark, unique within its package.
        package: Distribution that brings it.
        version: Of that distribution; None if the file does not tell.
        settings: What it was run with; ``model`` tells apart runs of one benchmark on several models.
        measurements: What was measured.
        machine: Where; None in files of scripts that were run by hand.
        limits: Of that machine, measured in the same run; by number of threads, ascending.
        date: When it began, with its zone; None if the file does not tell.
        warnings: What makes the figures doubtful, such as other programs that were running.
    """

    benchmark: str
    package: str
    version: str | None
    settings: Mapping[str, Scalar]
    measurements: tuple[Measurement, ...]
    machine: Machine | None
    limits: tuple[Limits, ...]
    date: datetime | None
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What two records have in common if one can be held against the other: package, benchmark, model."""
        return self.package, self.benchmark, str(self.settings.get("model", ""))


def record_to_json(record: Record) -> dict[str, object]:
    """The object of format 1."""
    return {
        "schema": SCHEMA,
        "benchmark": record.benchmark,
        "package": record.package,
        "version": record.version,
        "date": None if record.date is None else record.date.isoformat(timespec="seconds"),
        "settings": dict(record.settings),
        "results": [_measurement_to_json(measurement) for measurement in record.measurements],
        "machine": None if record.machine is None else machine_to_json(record.machine),
        "limits": [limits_to_json(limits) for limits in record.limits],
        "warnings": list(record.warnings),
    }


def write_record(record: Record, path: Path) -> None:
    """Write ``record`` to ``path`` as one line, whole or not at all, making its folder.

    Raises:
        ValueError: A value is not finite, which JSON cannot say.
        OSError: It cannot be written.
    """
    text = json.dumps(record_to_json(record), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        part.chmod(0o644)
        part.replace(path)
    except BaseException:  # Ctrl-C too: half a record is not left behind, and it goes on up
        part.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> Record:
    """The record in ``path``: format 1, or what a script ``bench_*.py`` writes.

    Raises:
        MalformedFileError: A key is missing or unknown, or a value of the wrong kind.
        PioError: It is of a later format than this version reads.
        OSError: It cannot be read.
    """
    document = read_object(path)
    if "schema" in document.rest(()):
        return _from_format_1(path, document)
    from inference_pio.benchmarks._script import record_of_script

    return record_of_script(path, document)


def read_records(paths: Iterable[Path]) -> list[Record]:
    """The records of files and of all ``*.json`` files below folders, in the order of their names.

    Raises:
        ModelNotFoundError: A path does not exist.
        PioError: A folder holds no record, or as :func:`read_record`.
    """
    records: list[Record] = []
    for path in paths:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not path.exists():
            raise ModelNotFoundError(f"no record or folder of records {path}", hint="pio bench run writes some")
        if not files:
            raise PioError(f"{path} holds no records (*.json)", hint="pio bench run writes some")
        records += [read_record(file) for file in files]
    return records


def _from_format_1(path: Path, document: Fields) -> Record:
    schema = document.integer("schema", minimum=1)
    if schema > SCHEMA:
        problem = f"{path}: a record of format {schema}; this version reads up to {SCHEMA}"
        raise PioError(problem, hint="update pio-benchmarks")
    document.keys(_KEYS)
    measurements = tuple(
        _measurement_from_json(Fields(path, value, f"results[{index}]"))
        for index, value in enumerate(document.items("results"))
    )
    names = [measurement.name for measurement in measurements]
    for name in names:
        if names.count(name) > 1:
            document.fail(f"the name {name!r} occurs twice", "results")
    limits = [
        limits_from_json(Fields(path, value, f"limits[{index}]"))
        for index, value in enumerate(document.items("limits"))
    ]
    machine = document.raw("machine")
    return Record(
        benchmark=document.text("benchmark"),
        package=document.text("package"),
        version=document.optional_text("version"),
        settings=document.scalars("settings"),
        measurements=measurements,
        machine=None if machine is None else machine_from_json(Fields(path, machine, "machine")),
        limits=tuple(sorted(limits, key=lambda each: each.threads)),
        date=_date(document),
        warnings=document.texts("warnings"),
    )


def _measurement_to_json(measurement: Measurement) -> dict[str, object]:
    return {
        "name": measurement.name,
        "unit": measurement.unit,
        "values": list(measurement.values),
        "better": measurement.better,
        "bytes_per_unit": measurement.bytes_per_unit,
        "ops_per_unit": measurement.ops_per_unit,
        "details": dict(measurement.details),
    }


def _measurement_from_json(fields: Fields) -> Measurement:
    fields.keys(("name", "unit", "values", "better", "bytes_per_unit", "ops_per_unit", "details"))
    return Measurement(
        name=fields.text("name"),
        unit=fields.text("unit"),
        values=fields.numbers("values"),
        better=better_from_json(fields),
        bytes_per_unit=fields.optional_positive("bytes_per_unit"),
        ops_per_unit=fields.optional_positive("ops_per_unit"),
        details=fields.scalars("details"),
    )


def better_from_json(fields: Fields) -> Better:
    """The key ``better``.

    Raises:
        MalformedFileError: It is none of the three words.
    """
    word = fields.text("better")
    for better in _BETTER:
        if word == better:
            return better
    return fields.fail(f"is {word!r}, not one of {', '.join(_BETTER)}", "better")


def _date(document: Fields) -> datetime | None:
    text = document.optional_text("date")
    if text is None:
        return None
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        document.fail(f"is {text[:40]!r}, not a date in ISO 8601", "date")
    return date if date.tzinfo is not None else document.fail(f"is {text!r}, without a time zone", "date")
