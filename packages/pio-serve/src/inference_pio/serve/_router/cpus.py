"""How replicas share the processors of a machine: each has cores of its own, as far as they go."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def share_cpus(count: int, threads: int) -> tuple[list[list[int] | None], int]:
    """Processors and threads for each of ``count`` replicas.

    Args:
        count: Replicas.
        threads: What one server alone would take: cores that this process may use, and whose time it is granted.

    Returns:
        For each replica its logical processors, None where the system has no such thing or there are fewer cores than
        replicas; and how many threads each may run, at least 1.
    """
    each = max(1, threads // count)
    if not hasattr(os, "sched_getaffinity"):
        return [None] * count, each
    return split_cores(cores_of(os.sched_getaffinity(0), Path("/")), count), each


def split_cores(cores: list[list[int]], count: int) -> list[list[int] | None]:
    """Neighbouring cores for each of ``count`` replicas, as evenly as they go; None for all if there are too few.

    Args:
        cores: Logical processors of each core.
        count: Replicas.
    """
    if len(cores) < count:
        return [None] * count
    bounds = [place * len(cores) // count for place in range(count + 1)]
    return [[cpu for core in cores[start:end] for cpu in core] for start, end in itertools.pairwise(bounds)]


def cores_of(cpus: Iterable[int], root: Path) -> list[list[int]]:
    """``cpus`` (numbers of Linux's logical processors) by the core that they belong to, by ``root/sys``; ascending."""
    cores: dict[str, list[int]] = {}
    for cpu in sorted(cpus):
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            core = path.read_text(encoding="ascii").strip()
        except OSError:  # the system does not tell: each counts for one
            core = str(cpu)
        cores.setdefault(core, []).append(cpu)
    return list(cores.values())
