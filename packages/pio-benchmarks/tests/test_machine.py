"""Fingerprints of machines, their limits, and whether they are quiet."""

from __future__ import annotations

import dataclasses
import subprocess
import time

import numpy as np
import psutil
import pytest

from inference_pio.benchmarks import Limits, Measurement, default_threads, describe_machine, machine_differences
from inference_pio.benchmarks import _limits_probe as probe
from inference_pio.benchmarks._limits import limits_for, measure_limits
from inference_pio.benchmarks._machine import cgroup_cpu_limit
from inference_pio.benchmarks._quiet import Activity, BusyMachineError, Culprit, check_quiet, observe
from inference_pio.benchmarks._roofline import attained, units_per_second
from inference_pio.interfaces import PioError


def test_this_machine_agrees_with_psutil():
    """Counts and memory."""
    found = describe_machine()
    assert found.logical_cores == psutil.cpu_count()
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 1 <= default_threads(found) <= found.logical_cores
    assert found.distributions["numpy"] == np.__version__
    assert "pio-interfaces" in found.distributions
    assert found.cpu
    assert machine_differences(found, describe_machine()) == []


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({}, 4),
        ({"usable_cpus": 2}, 2),
        ({"cpu_limit": 1.5}, 2),
        ({"cpu_limit": 0.2}, 1),
        ({"physical_cores": None}, 8),
    ],
)
def test_threads_follow_cores_affinity_and_quota(machine, changes, threads):
    """The least of them, rounded up."""
    assert default_threads(dataclasses.replace(machine, **changes)) == threads


def test_only_hardware_makes_machines_different(machine):
    """Software is what one compares; memory is counted in GiB."""
    same = dataclasses.replace(
        machine, python="CPython 3.13.0", system="Linux 6.9", distributions={}, memory_bytes=machine.memory_bytes - 4096
    )
    assert machine_differences(machine, same) == []
    other = dataclasses.replace(machine, cpu="Other", instruction_sets=(), memory_bytes=None)
    assert machine_differences(machine, other) == [
        "cpu: Example CPU 9000, Other",
        "instruction_sets: avx2 fma, none",
        "memory_gib: 16, unknown",
    ]


def test_the_quota_of_a_control_group_is_the_least_above_it(tmp_path):
    """Version 2 and version 1; ``max`` and -1 are no limit."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    assert cgroup_cpu_limit(tmp_path, "0::/outer/inner\n") is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert cgroup_cpu_limit(tmp_path, "0::/outer/inner\n") is None
    (tmp_path / "outer" / "cpu.max").write_text("150000 100000\n")
    assert cgroup_cpu_limit(tmp_path, "0::/outer/inner\n") == 1.5
    (inner / "cpu.max").write_text("50000 100000\n")
    assert cgroup_cpu_limit(tmp_path, "0::/outer/inner\n") == 0.5
    old = tmp_path / "cpu,cpuacct"
    old.mkdir()
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_cpu_limit(tmp_path, "3:cpu,cpuacct:/gone\n2:memory:/outer\n") is None
    (old / "cpu.cfs_quota_us").write_text("200000\n")
    assert cgroup_cpu_limit(tmp_path, "3:cpu,cpuacct:/gone\n") == 2.0


def test_limits_of_this_machine_are_plausible():
    """Both numbers of threads, in a process of their own; rough bounds that any machine since 2010 is within."""
    measured = measure_limits([2, 1, 2], quick=True)
    assert [limits.threads for limits in measured] == [1, 2]
    for limits in measured:
        assert 0.5 < limits.read_gb_s < 5000
        assert limits.fp32_gflop_s is None or 0.5 < limits.fp32_gflop_s < 1e6
        assert 0.5 < limits.int8_gop_s < 1e7
        assert "kernels" in limits.source


@pytest.mark.parametrize("counts", [[], [0], [1, -2]])
def test_limits_need_threads(counts):
    """None is not a number of threads to measure with."""
    with pytest.raises(ValueError, match="thread counts must be at least 1"):
        measure_limits(counts)


def test_a_failing_probe_is_told(monkeypatch):
    """With the last line that it wrote."""

    def fail(*args, **options):
        return subprocess.CompletedProcess(args, 3, "", "Traceback\nMemoryError: no room\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(PioError, match="exit code 3: MemoryError: no room"):
        measure_limits([1])


def test_the_best_of_several_repeats_counts():
    """Every task runs as often as every other; the first repeat is left out."""
    calls = []
    seconds = probe.best_seconds([lambda: calls.append(time.sleep(0.01))] * 3, 0.0)
    assert len(calls) == 9
    assert 0.01 <= seconds < 0.5
    with pytest.raises(ZeroDivisionError):
        probe.best_seconds([lambda: 1 / 0], 0.0)


def test_the_higher_of_two_probes_counts():
    """A limit is what is possible; a probe that cannot run is told and left out."""
    reader = {"numpy": lambda threads: {"read_gb_s": 10.0 * threads, "fp32_gflop_s": 50.0}}
    other = {"kernels": lambda threads: {"read_gb_per_s": 4.0 * threads, "int8_gop_per_s": 400.0, "threads": 9.0}}
    assert probe.measure(reader | other, 2) == {
        "threads": 2, "read_gb_s": 20.0, "fp32_gflop_s": 50.0, "int8_gop_s": 400.0, "source": "numpy, kernels",
    }  # fmt: skip
    assert probe.measure(reader, 1)["int8_gop_s"] is None


def test_a_probe_that_cannot_run_is_told(capsys):
    """The others go on without it."""

    def broken(threads: int):
        raise PioError("the library was built for another processor")

    found = probe.measure({"numpy": lambda _threads: {"read_gb_s": 1.0}, "kernels": broken}, 1)
    assert found["source"] == "numpy"
    assert capsys.readouterr().err == "kernels: the library was built for another processor\n"


def test_the_probe_of_the_native_library_is_used(monkeypatch):
    """Where it is installed and has one."""
    import sys
    import types

    kernels = types.ModuleType("inference_pio.kernels")
    monkeypatch.setitem(sys.modules, "inference_pio.kernels", kernels)
    assert list(probe.find_probes(quick=True)) == ["numpy"]
    kernels.measure_limits = lambda _threads: {}
    assert list(probe.find_probes(quick=True)) == ["numpy", "kernels"]


def test_limits_are_found_by_threads():
    """Those of the most threads if nothing is said."""
    one, two = Limits(1, 10.0, None, None, "numpy"), Limits(2, 15.0, None, None, "numpy")
    assert limits_for((one, two), 1) is one
    assert limits_for((one, two), None) is two
    assert limits_for((one, two), 3) is None
    assert limits_for((), None) is None


@pytest.mark.parametrize(
    ("value", "unit", "rate"),
    [(50.0, "tokens/s", 50.0), (4.0, "ms", 250.0), (4.0, "ms/token", 250.0), (2.0, "s", 0.5), (5.0, "x", None)],
)
def test_rates_of_units(value, unit, rate):
    """A time is the inverse of a rate; a ratio is neither."""
    assert units_per_second(Measurement("m", unit, (value,), "higher")) == rate


LIMITS = (Limits(1, 10.0, 100.0, 400.0, "kernels"), Limits(2, 20.0, 200.0, None, "numpy"))


@pytest.mark.parametrize(
    ("bytes_per_unit", "ops_per_unit", "details", "expected"),
    [
        (1e8, None, {"threads": 1}, (100.0, "memory")),
        (1e8, 1e9, {"threads": 1}, (100.0, "memory")),
        (1e6, 1e9, {"threads": 1}, (400.0, "compute")),
        (1e6, 1e9, {"threads": 1, "arithmetic": "fp32"}, (100.0, "compute")),
        (None, 1e9, {}, (200.0, "compute")),
        (None, 1e9, {"arithmetic": "int8"}, None),
        (None, None, {}, None),
        (1e8, 1e9, {"threads": 7}, None),
    ],
)
def test_the_lower_roof_bounds(bytes_per_unit, ops_per_unit, details, expected):
    """By hand: bandwidth over bytes, peak over operations."""
    measurement = Measurement("m", "tokens/s", (50.0,), "higher", bytes_per_unit, ops_per_unit, details)
    found = attained(measurement, LIMITS)
    assert (None if found is None else (found.limit, found.bound)) == expected
    if found is not None:
        assert found.percent == pytest.approx(100 * 50 / found.limit)


def test_a_busy_process_is_found(python):
    """By pid, with about the share that it uses; a child of ours is not to blame."""
    burner = [python, "-c", "while True: pass"]
    # A grandchild whose parent is gone belongs to nobody here, as other programs do.
    orphan = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid, flush=True)"
    pid = int(subprocess.run([python, "-c", orphan, *burner], capture_output=True, text=True, check=True).stdout)
    child = subprocess.Popen(burner)
    try:
        activity = observe(0.5)
    finally:
        child.kill()
        child.wait()
        psutil.Process(pid).kill()
    found = {culprit.pid: culprit.cpus for culprit in activity.culprits}
    assert 0.05 < found[pid] < 1.6
    assert child.pid not in found
    assert activity.others >= found[pid]
    assert not activity.quiet


BUSY = Activity(1.25, 0.5, 2, (Culprit("make", 7, 0.7), Culprit("idle", 8, 0.0)))


def test_who_is_busy_is_told_but_not_kept():
    """Names are for the terminal; records get the share alone."""
    assert BUSY.describe(names=True) == (
        "other programs use 1.2 of 2 CPUs, 0.5 of it outside this virtual machine: make (pid 7) 0.7"
    )
    assert BUSY.describe(names=False) == "other programs use 1.2 of 2 CPUs, 0.5 of it outside this virtual machine"
    assert not BUSY.quiet
    assert Activity(0.1, 0.0, 2, ()).quiet


def test_strict_refuses_a_busy_machine(monkeypatch):
    """And says who; without it, the caller warns."""
    monkeypatch.setattr("inference_pio.benchmarks._quiet.observe", lambda _seconds: BUSY)
    assert check_quiet(strict=False) is BUSY
    with pytest.raises(BusyMachineError, match=r"make \(pid 7\)"):
        check_quiet(strict=True)
