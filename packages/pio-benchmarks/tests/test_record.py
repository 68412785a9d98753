"""Records: what is written is read, and nothing else is."""

from __future__ import annotations

import copy
import dataclasses
import json
from datetime import UTC, datetime

import pytest

from inference_pio.benchmarks import Limits, Measurement, read_record, read_records, record_to_json, write_record
from inference_pio.benchmarks._script import add_round, better_of_unit
from inference_pio.interfaces import LimitExceededError, MalformedFileError, ModelNotFoundError, PioError


def test_what_is_written_is_read(make_record, tmp_path):
    """All fields, through a folder that does not exist yet; nothing else is left in it."""
    path = tmp_path / "new" / "record.json"
    for record in (make_record(), make_record(machine=None, version=None, date=None, limits=(), warnings=())):
        write_record(record, path)
        assert read_record(path) == record
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text().count("\n") == 1


def test_a_record_that_cannot_be_written_leaves_the_old_one(make_record, tmp_path):
    """And no half of a file."""
    path = tmp_path / "record.json"
    write_record(make_record(), path)
    broken = make_record(measurements=(Measurement("x", "s", (float("nan"),), "lower"),))
    with pytest.raises(ValueError, match="Out of range float"):
        write_record(broken, path)
    assert read_record(path) == make_record()
    assert list(tmp_path.iterdir()) == [path]


def test_the_object_has_what_the_benchmark_session_asks_of_scripts(make_record):
    """So that one tool reads both."""
    assert {"benchmark", "package", "results", "machine"} <= record_to_json(make_record()).keys()


def test_a_record_names_no_host_user_or_path():
    """The fingerprint of this very machine holds none of its names."""
    import getpass
    import socket
    from pathlib import Path

    from inference_pio.benchmarks import describe_machine
    from inference_pio.benchmarks._machine import machine_to_json

    told = json.dumps(machine_to_json(describe_machine()))
    for path in {Path.home(), Path.cwd()} - {Path("/")}:  # where users of containers are at home
        assert str(path) not in told
    for name in (socket.gethostname(), getpass.getuser()):
        assert f'"{name}"' not in told


def document(make_record) -> dict:
    return copy.deepcopy(record_to_json(make_record()))


YES = True


def put(value: object, *keys: str | int):
    def change(record: dict) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def drop(*keys: str | int):
    def change(record: dict) -> None:
        for key in keys[:-1]:
            record = record[key]
        del record[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("settings"), "settings: is missing"),
        (drop("results", 1, "unit"), r"results\[1\].unit: is missing"),
        (drop("machine", "cpu"), "machine.cpu: is missing"),
        (drop("limits", 0, "source"), r"limits\[0\].source: is missing"),
        (put(1, "colour"), "colour: unknown key; known are schema"),
        (put(1, "results", 0, "colour"), r"results\[0\].colour: unknown key"),
        (put(1, "machine", "hostname"), "machine.hostname: unknown key"),
        (put(0, "schema"), "schema: is 0, less than 1"),
        (put("1", "schema"), "schema: is '1', not an integer"),
        (put(YES, "schema"), "schema: is True, not an integer"),
        (put("", "benchmark"), "benchmark: is empty"),
        (put(["x"], "package"), "package: is a list, not a string"),
        (put({}, "results"), "results: is an object, not a list"),
        (put([1], "results"), r"results\[0\]: is 1, not an object"),
        (put([], "results", 0, "values"), r"results\[0\].values: is empty"),
        (put([1, "2"], "results", 0, "values"), r"results\[0\].values\[1\]: is '2', not a number"),
        (put([True], "results", 0, "values"), r"values\[0\]: is True, not a number"),
        (put([10**400], "results", 0, "values"), r"values\[0\]: is too large"),
        (put("load", "results", 0, "name"), "results: the name 'load' occurs twice"),
        (put("faster", "results", 0, "better"), "better: is 'faster', not one of higher, lower, neither"),
        (put(-1, "results", 0, "bytes_per_unit"), "bytes_per_unit: is -1, not positive"),
        (put({"a": []}, "results", 0, "details"), "details.a: is a list, neither text"),
        (put({"a": {}}, "settings"), "settings.a: is an object, neither text"),
        (put("yesterday", "date"), "date: is 'yesterday', not a date in ISO 8601"),
        (put("2026-11-01T12:00:00", "date"), "date: is '2026-11-01T12:00:00', without a time zone"),
        (put(0, "machine", "usable_cpus"), "machine.usable_cpus: is 0, less than 1"),
        (put([1], "machine", "gpus"), r"machine.gpus\[0\]: is 1, not a string"),
        (put({"numpy": 2}, "machine", "distributions"), "machine.distributions.numpy: is 2, not a string"),
        (put(0, "limits", 0, "read_gb_s"), r"limits\[0\].read_gb_s: is 0, not positive"),
        (put(None, "limits", 0, "read_gb_s"), r"limits\[0\].read_gb_s: is missing"),
        (put([3], "warnings"), r"warnings\[0\]: is 3, not a string"),
    ],
)
def test_a_malformed_record_is_refused_with_path_and_field(make_record, tmp_path, change, message):
    """One line that says where and what."""
    path = tmp_path / "bad.json"
    broken = document(make_record)
    change(broken)
    path.write_text(json.dumps(broken))
    with pytest.raises(MalformedFileError, match=message) as caught:
        read_record(path)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no JSON record"),
        (b"[]", "is a list, not an object"),
        (b"nope", "is no JSON record"),
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b'{"schema": NaN}', "NaN is no JSON"),
        (b'{"schema": -Infinity}', "-Infinity is no JSON"),
        (b'{"schema": 1e999}', "schema: is inf, not an integer"),
        (b"\xff\xfe{}", "is no JSON record"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "is no JSON record"),
        (b'{"benchmark": "x"}', "package: is missing"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, data, message):
    """Whatever the bytes, the error is ours."""
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    with pytest.raises(MalformedFileError, match=message):
        read_record(path)


def test_a_huge_file_is_not_parsed(tmp_path):
    """Nobody's record has 16 MiB."""
    path = tmp_path / "huge.json"
    path.write_bytes(b'{"schema": 1, "x": "' + b"x" * (16 << 20) + b'"}')
    with pytest.raises(LimitExceededError, match="larger than 16777216 bytes"):
        read_record(path)


def test_a_later_format_is_told_from_a_broken_file(make_record, tmp_path):
    """The way out is an update."""
    path = tmp_path / "later.json"
    path.write_text(json.dumps(document(make_record) | {"schema": 2}))
    with pytest.raises(PioError, match="format 2; this version reads up to 1") as caught:
        read_record(path)
    assert caught.value.hint == "update pio-benchmarks"


SCRIPT = {
    "benchmark": "sampler",
    "package": "pio-core",
    "settings": {"rounds": 2, "dtypes": ["a", "b"]},
    "repeats": 3,
    "results": [
        {"name": "host", "kind": "greedy", "rows": 1, "value": 0.5, "unit": "ms/row", "min": 0.4},
        {"name": "host", "kind": "greedy", "rows": 8, "value": 0.25, "unit": "ms/row", "min": 0.2},
        {"name": "same", "value": 1, "unit": "x"},
        {"name": "same", "value": 2, "unit": "x"},
        {"name": "own words", "values": [1, 2], "unit": "x", "better": "lower", "bytes_per_unit": 8},
        {"name": "speed", "value": 9, "unit": "tokens/s"},
    ],
    "machine": {"threads": 2, "platform": "somewhere"},
}


def test_results_of_scripts_are_records_too(tmp_path):
    """Values, what is better by the unit, names told apart by their details, settings, threads."""
    path = tmp_path / "script.json"
    path.write_text(json.dumps(SCRIPT))
    record = read_record(path)
    assert record.key == ("pio-core", "sampler", "")
    assert record.settings == {"rounds": 2, "dtypes": "['a', 'b']", "repeats": 3, "threads": 2}
    assert (record.machine, record.version, record.date, record.limits) == (None, None, None, ())
    assert [(each.name, each.values, each.better) for each in record.measurements] == [
        ("host, kind=greedy, rows=1", (0.5,), "lower"),
        ("host, kind=greedy, rows=8", (0.25,), "lower"),
        ("same", (1.0,), "neither"),
        ("same #2", (2.0,), "neither"),
        ("own words", (1.0, 2.0), "lower"),
        ("speed", (9.0,), "higher"),
    ]
    assert record.measurements[0].details == {"kind": "greedy", "rows": 1, "min": 0.4}
    assert record.measurements[4].bytes_per_unit == 8.0
    write_record(record, path)
    assert read_record(path) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("machine"), "machine: is missing"),
        (drop("results", 0, "value"), r"results\[0\].value: is null or missing, not a number"),
        (drop("results", 0, "unit"), r"results\[0\].unit: is null or missing, not a string"),
        (put("x", "results", 1, "better"), "better: is 'x'"),
        (put([], "machine"), "machine: is a list, not an object"),
    ],
)
def test_malformed_results_of_scripts_are_refused(tmp_path, change, message):
    """With path and field."""
    path = tmp_path / "script.json"
    broken = copy.deepcopy(SCRIPT)
    change(broken)
    path.write_text(json.dumps(broken))
    with pytest.raises(MalformedFileError, match=message):
        read_record(path)


@pytest.mark.parametrize(
    ("unit", "better"),
    [
        ("tokens/s", "higher"), ("GB/s", "higher"), ("s", "lower"), ("ms", "lower"), ("us", "lower"),
        ("ms/row", "lower"), ("MiB", "lower"), ("bytes", "lower"), ("x", "neither"), ("%", "neither"),
        ("pages", "neither"),
    ],
)  # fmt: skip
def test_units_say_what_is_better(unit, better):
    """Rates rise, times and sizes fall; of ratios and counts nobody knows."""
    assert better_of_unit(unit) == better


def test_rounds_add_up(make_record):
    """Values are strung together by name; what one round alone has stays."""
    first = make_record()
    second = make_record(
        measurements=(
            dataclasses.replace(first.measurements[1], values=(0.7,)),
            Measurement("new", "s", (1.0,), "lower"),
        )
    )
    values = {each.name: each.values for each in add_round(first, second).measurements}
    assert values == {
        "decode, batch 1": (100.0, 102.0, 98.0, 101.0, 99.0),
        "load": (0.5, 0.6, 0.55, 0.7),
        "new": (1.0,),
    }


def test_folders_are_read_by_name(make_record, tmp_path):
    """At any depth, in a fixed order, files beside them."""
    for name in ("b/2.json", "a.json", "b/1.json"):
        write_record(make_record(benchmark=name), tmp_path / "records" / name)
    write_record(make_record(benchmark="alone"), tmp_path / "alone.json")
    found = read_records([tmp_path / "records", tmp_path / "alone.json"])
    assert [record.benchmark for record in found] == ["a.json", "b/1.json", "b/2.json", "alone"]


def test_records_that_are_not_there(tmp_path):
    """A missing path is exit code 3; an empty folder holds nothing to show."""
    with pytest.raises(ModelNotFoundError, match=r"no record or folder of records .*nowhere"):
        read_records([tmp_path / "nowhere"])
    with pytest.raises(PioError, match="holds no records"):
        read_records([tmp_path])


def test_limits_are_sorted_and_dates_keep_their_zone(make_record, tmp_path):
    """Whatever their order in the file."""
    broken = document(make_record)
    broken["limits"].reverse()
    broken["date"] = "2026-11-01T13:00:00+01:00"
    path = tmp_path / "record.json"
    path.write_text(json.dumps(broken))
    record = read_record(path)
    assert record.limits == (Limits(1, 13.0, 90.0, 400.0, "kernels"), Limits(2, 20.0, 150.0, None, "numpy"))
    assert record.date == datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
