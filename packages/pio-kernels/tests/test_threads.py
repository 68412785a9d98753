"""The number of threads follows cores, affinity and the limits of control groups."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference_pio.kernels import _threads
from inference_pio.kernels._threads import default_threads, granted_processors, physical_cores

ROOT = Path(__file__).resolve().parent.parent


def write(root, path, text):
    """A file below ``root`` as Linux shows it."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="ascii")


def test_siblings_share_a_core(tmp_path):
    """Two logical processors of one core count once, and only those that may be used."""
    for number, siblings in enumerate(["0,4", "1,5", "2,6", "3,7"] * 2):
        write(tmp_path, f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", siblings)
    assert physical_cores(set(range(8)), tmp_path) == 4
    assert physical_cores({0, 4, 5}, tmp_path) == 2


def test_processors_without_topology_count_for_one(tmp_path):
    """A system that does not tell has as many cores as processors."""
    assert physical_cores({0, 1, 2}, tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, float("inf")),
        ({"proc/self/cgroup": "0::/"}, float("inf")),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, float("inf")),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/host/path", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "2:cpuacct,cpu:/x\n1:memory:/x\n0::/",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            float("inf"),
        ),
    ],
)
def test_control_groups_limit(tmp_path, files, granted):
    """The smallest limit of the group and of those above it, of either version."""
    for path, text in files.items():
        write(tmp_path, path, text)
    assert granted_processors(tmp_path) == granted


def test_there_is_at_least_one_thread(monkeypatch):
    """Half a processor's worth of time is one thread; no limit leaves the cores."""
    monkeypatch.setattr(_threads, "granted_processors", lambda _: 0.5)
    assert default_threads() == 1
    monkeypatch.undo()
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


def test_the_team_has_no_races(tmp_path):
    """Under the thread sanitizer, over calls of uneven chunks and teams that come and go: right sums, no report."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ with the thread sanitizer")
    if not (ROOT / "native").is_dir():
        pytest.skip("needs a checkout or a source distribution")
    program = tmp_path / "team"
    flags = ["-std=c++17", "-O1", "-g", "-w", "-fsanitize=thread", "-pthread"]
    sources = [ROOT / "tests/native/team.cpp", ROOT / "native/threads.cpp", ROOT / "native/memory.cpp"]
    build = subprocess.run(
        [compiler, *flags, *map(str, sources), "-o", str(program)], capture_output=True, text=True, check=False
    )
    if "cannot find" in build.stderr:
        pytest.skip("g++ lacks the thread sanitizer's library")
    assert build.returncode == 0, build.stderr
    # Preloaded libraries of other sanitizers do not go with this one.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=environment, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel's layout of addresses")
    assert done.returncode == 0, done.stderr
