"""How many threads are worth running: one per physical core that this process may use."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from pathlib import Path


def default_threads() -> int:
    """Physical cores that the process may run on and whose time its control group grants, at least 1.

    Where the system does not tell which logical processors share a core, each counts for one.
    """
    if sys.platform == "darwin":
        return _macos_cores() or os.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    root = Path("/")
    cores = physical_cores(os.sched_getaffinity(0), root)
    return max(1, int(min(cores, granted_processors(root))))


def physical_cores(processors: set[int], root: Path) -> int:
    """How many cores ``processors`` (numbers of Linux's logical processors) belong to, by ``root/sys``."""
    cores: set[str] = set()
    for number in processors:
        path = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        cores.add(_text(path) or f"{number}")
    return len(cores)


def granted_processors(root: Path) -> float:
    """Processors' worth of time that the control groups of this process grant, by ``root/proc`` and ``root/sys``.

    The smallest limit of the group and of those above it; infinite without one.
    """
    limits = [float("inf")]
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, read = root / "sys/fs/cgroup", _limit_of_version_2
        elif "cpu" in controllers.split(","):
            folder, read = root / "sys/fs/cgroup/cpu", _limit_of_version_1
        else:
            continue
        group = folder / path.lstrip("/")
        # In a container the path may be the host's, which is not to be seen inside: then the limit is at the top.
        for each in (group, *group.parents):
            limits.append(read(each))
            if each == folder:
                break
    return min(limits)


def _limit_of_version_2(group: Path) -> float:
    quota, _, period = (_text(group / "cpu.max") or "max 1").partition(" ")
    return float("inf") if quota == "max" else float(quota) / float(period)


def _limit_of_version_1(group: Path) -> float:
    quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    return float(quota) / float(period) if quota and period and float(quota) > 0 else float("inf")


def _macos_cores() -> int:
    """Performance cores, or all physical ones where they are of one kind; 0 if the system does not say."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        count, size = ctypes.c_int32(), ctypes.c_size_t(4)
        if library.sysctlbyname(name, ctypes.byref(count), ctypes.byref(size), None, 0) == 0:
            return count.value
    return 0


def _text(path: Path) -> str | None:
    """What is in a small file; None if it cannot be read, which for these files means that the system lacks it."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
