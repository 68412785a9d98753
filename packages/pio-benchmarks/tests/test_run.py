"""``pio bench run``: scripts of a checkout, each in its process, into records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from inference_pio.benchmarks import Limits, read_record
from inference_pio.benchmarks._run import Surroundings, run_script
from inference_pio.benchmarks._scripts import find_root, find_scripts, select_scripts
from inference_pio.interfaces import InvalidRequestError, MalformedFileError, ModelNotFoundError

REPOSITORY = Path(__file__).parents[3]


def test_scripts_are_found_from_anywhere_in_the_checkout(checkout):
    """By distribution and name, with the version of the checkout."""
    root = checkout({"pio-b/one": "", "pio-a/two": "", "pio-a/one": ""})
    (root / "packages" / "pio-a" / "benchmarks" / "helper.py").write_text("")
    assert find_root(root / "packages" / "pio-a" / "benchmarks") == root
    scripts = find_scripts(root)
    assert [(each.name, each.version) for each in scripts] == [
        ("pio-a/one", "1.5"), ("pio-a/two", "1.5"), ("pio-b/one", "1.5"),
    ]  # fmt: skip


def test_names_select_distributions_and_benchmarks(checkout):
    """Each script once, however often it is named."""
    scripts = find_scripts(checkout({"pio-b/one": "", "pio-a/two": "", "pio-a/one": ""}))

    def names(*wanted: str) -> list[str]:
        return [each.name for each in select_scripts(scripts, wanted)]

    assert names("pio-a") == ["pio-a/one", "pio-a/two"]
    assert names("one", "pio-a/one") == ["pio-a/one", "pio-b/one"]
    with pytest.raises(InvalidRequestError, match="no benchmark 'tow' in this checkout") as caught:
        names("tow")
    assert caught.value.hint == "did you mean 'two'?"


def test_what_is_no_checkout(tmp_path):
    """A folder without a workspace above it, and files that are no TOML."""
    with pytest.raises(ModelNotFoundError, match="no workspace of distributions"):
        find_root(Path(tmp_path.anchor))
    (tmp_path / "pyproject.toml").write_text("nonsense")
    with pytest.raises(MalformedFileError, match="is no TOML"):
        find_root(tmp_path)


def test_distributions_need_name_and_version(checkout):
    """Their records carry both."""
    root = checkout({"pio-a/one": ""})
    (root / "packages" / "pio-a" / "pyproject.toml").write_text('[project]\nname = "pio-a"\n')
    with pytest.raises(MalformedFileError, match=r"project\.version: is missing"):
        find_scripts(root)


@pytest.fixture
def run_one(checkout, machine, tmp_path):
    """Runs a script of the given source."""

    def run(source: str, **options: object):
        [script] = find_scripts(checkout({"pio-a/one": source}))
        surroundings = Surroundings(machine, (Limits(1, 10.0, None, None, "numpy"),), ("noisy",))
        return run_script(script, tmp_path, surroundings, **options)

    return run


def test_a_script_becomes_a_complete_record(run_one, machine):
    """What the script does not know is filled in; what it prints goes to the log."""
    outcome = run_one("GOOD", quick=True)
    record = outcome.record
    assert outcome.problem is None
    assert (record.version, record.machine, record.warnings) == ("1.5", machine, ("noisy",))
    assert record.limits == (Limits(1, 10.0, None, None, "numpy"),)
    assert record.settings == {"threads": 3, "quick": True}
    assert [(each.name, each.values, each.details) for each in record.measurements] == [
        ("speed", (5.0,), {"flavour": "plain"})
    ]
    assert record.date.tzinfo is not None
    assert "a table for people" in outcome.log.read_text()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("raise SystemExit('no such model')", "exit code 1: no such model"),
        ("import os; os._exit(3)", "exit code 3"),
        ("print('done')", "it wrote no result"),
        (
            "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('{}')",
            "its result: benchmark: is missing",
        ),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    ],
)
def test_failures_say_why(run_one, source, problem):
    """The last line that the script wrote, or what its result lacks."""
    outcome = run_one(source)
    assert outcome.record is None
    assert problem in outcome.problem


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_killed_script_names_the_signal(run_one):
    """As the kernel does when memory runs out."""
    assert run_one("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").problem == "signal 9"


LINGERS = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("children.txt").write_text(str(child.pid))
"""


def gone(pid: int) -> bool:
    """Whether a process has ended, within some seconds; one that nobody has waited for yet counts as ended."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
@pytest.mark.parametrize(("source", "timeout"), [(LINGERS + "time.sleep(600)", 1.5), (LINGERS, None)])
def test_no_process_outlives_its_script(run_one, tmp_path, source, timeout):
    """Neither after a timeout nor behind a script that has ended."""
    outcome = run_one(source, timeout=timeout)
    assert outcome.problem == ("it wrote no result" if timeout is None else "it took longer than 1.5 seconds")
    pid = int((tmp_path / "checkout" / "packages" / "pio-a" / "children.txt").read_text())
    assert gone(pid)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_script_and_keeps_finished_records(checkout, tmp_path, number, code):
    """Ctrl-C and a polite kill: the exit code of shells, no traceback, no process left behind."""
    root = checkout({"pio-a/first": "GOOD", "pio-b/slow": LINGERS + "time.sleep(600)"})
    records = tmp_path / "records"
    command = [sys.executable, "-m", "inference_pio.cli", "bench", "run", "--all", "--quick"]
    process = subprocess.Popen(
        [*command, "--root", str(root), "-o", str(records)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children = root / "packages" / "pio-b" / "children.txt"
    deadline = time.monotonic() + 60
    while not (children.exists() and children.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in out + err
    assert gone(int(children.read_text()))
    assert read_record(records / "pio-a.first.json").benchmark == "first"
    assert not (records / "pio-b.slow.json").exists()


def test_all_run_even_if_one_fails(pio_bench, checkout, tmp_path):
    """Exit code 1; the others have records; the log of the failed one is named."""
    root = checkout({"pio-a/good": "GOOD", "pio-b/bad": "raise SystemExit('broken')", "pio-c/good": "GOOD"})
    records = tmp_path / "records"
    done = pio_bench("run", "--all", "--quick", "--root", root, "-o", records)
    assert done.code == 1
    assert [line.split()[-1] for line in done.out.splitlines()] == ["RESULT", "ok", "failed", "ok"]
    assert "[2/3] pio-b/bad failed" in done.err
    assert "exit code 1: broken" in done.err
    assert "2 records in" in done.err
    assert sorted(path.name for path in records.glob("*.json")) == ["pio-a.good.json", "pio-c.good.json"]


def test_rounds_take_turns_and_add_up(pio_bench, checkout, tmp_path):
    """One record per script with a value per round."""
    root = checkout({"pio-a/good": "GOOD", "pio-b/good": "GOOD"})
    done = pio_bench("run", "--all", "--quick", "--rounds", 3, "--root", root, "-o", tmp_path / "r", "--json")
    assert done.code == 0
    assert [each["name"] for each in done.json["benchmarks"]] == ["pio-a/good", "pio-b/good"] * 3
    for name in ("pio-a.good.json", "pio-b.good.json"):
        assert read_record(tmp_path / "r" / name).measurements[0].values == (5.0, 5.0, 5.0)


def test_the_default_folder_is_in_the_checkout(pio_bench, checkout):
    """Under the date, where the repository ignores it."""
    root = checkout({"pio-a/good": "GOOD"})
    done = pio_bench("run", "good", "--quick", "--root", root, "--json")
    assert done.code == 0
    assert Path(done.json["folder"]).parent == root / "bench-results"
    assert [path.name for path in (root / "bench-results").rglob("*.json")] == ["pio-a.good.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "what to run: neither names nor --all"),
        (("good", "--all"), "what to run: names and --all at once"),
        (("goof",), "no benchmark 'goof' in this checkout (did you mean 'good'?)"),
    ],
)
def test_what_to_run_must_be_said(pio_bench, checkout, arguments, message):
    """Exit code 2, before anything runs."""
    done = pio_bench("run", *arguments, "--root", checkout({"pio-a/good": "GOOD"}))
    assert done.code == 2
    assert message in done.err


def test_listing_runs_nothing(pio_bench, checkout):
    """Names and versions, for people and for programs."""
    root = checkout({"pio-a/good": "raise SystemExit(1)"})
    assert pio_bench("run", "--list", "--root", root).out.splitlines()[1] == "pio-a/good  1.5"
    listed = pio_bench("run", "--list", "--json", "--root", root).json
    assert listed == [{"name": "pio-a/good", "package": "pio-a", "version": "1.5"}]


@pytest.mark.skipif(
    not (REPOSITORY / "packages" / "pio-cache").is_dir(), reason="there is no checkout around the tests"
)
def test_real_benchmarks_run(pio_bench, tmp_path):
    """Two packages of this repository, quickly; their records can be read, compared and drawn."""
    done = pio_bench("run", "pio-cache", "pio-interfaces", "--quick", "--root", REPOSITORY, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    records = [read_record(path) for path in sorted(tmp_path.glob("*.json"))]
    assert [record.key for record in records] == [("pio-cache", "cache", ""), ("pio-interfaces", "import", "")]
    for record in records:
        assert record.machine is not None
        assert record.limits[0].threads == 1
        assert record.settings["quick"] is True
        assert all(measurement.values[0] >= 0 for measurement in record.measurements)
    compared = pio_bench("compare", tmp_path, tmp_path, "--json")
    assert compared.code == 0
    assert {change["verdict"] for change in compared.json["changes"]} <= {"same", "not judged"}
    assert json.loads(done.out)["benchmarks"][0]["problem"] is None
