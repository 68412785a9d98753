"""Whether this machine has anything else to do: what other programs use, and who they are."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from inference_pio.interfaces import PioError

QUIET_CPUS = 0.15
"""Processors' worth of foreign work below which a machine counts as quiet; an idle desktop stays below it."""

_NAMED = 3


class BusyMachineError(PioError):
    """Other programs are running, and figures were wanted only from a quiet machine."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """Another program that was running.

    Attributes:
        name: Of its process.
        pid: Of its process.
        cpus: Processors' worth of time that it used.
    """

    name: str
    pid: int
    cpus: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What a machine did besides us.

    Attributes:
        others: Processors' worth of time used by others: processes, the kernel, and what the host took away.
        stolen: The part of it that the host of a virtual machine took away.
        cpus: Processors that there are.
        culprits: The processes among them, the busiest first.
    """

    others: float
    stolen: float
    cpus: int
    culprits: tuple[Culprit, ...]

    @property
    def quiet(self) -> bool:
        """Whether figures taken now can be trusted."""
        return self.others < QUIET_CPUS

    def describe(self, *, names: bool) -> str:
        """One line; with ``names`` it says who."""
        text = f"other programs use {self.others:.1f} of {self.cpus} CPUs"
        if self.stolen >= 0.05:
            text += f", {self.stolen:.1f} of it outside this virtual machine"
        told = [f"{each.name} (pid {each.pid}) {each.cpus:.1f}" for each in self.culprits[:_NAMED] if each.cpus >= 0.05]
        return f"{text}: {', '.join(told)}" if names and told else text


def observe(seconds: float = 1.0) -> Activity:
    """What others do in the next ``seconds``; this process and its descendants do not count."""
    import psutil

    before, times_before, own_before = _process_times(), psutil.cpu_times(), time.process_time()
    begin = time.perf_counter()
    time.sleep(seconds)
    elapsed = time.perf_counter() - begin
    times_after, own_after, after = psutil.cpu_times(), time.process_time(), _process_times()
    own = _own_pids()
    used = {key: spent - before.get(key, (spent, ""))[0] for key, (spent, _) in after.items()}
    culprits = sorted(
        (Culprit(after[key][1], key[0], spent / elapsed) for key, spent in used.items() if key[0] not in own),
        key=lambda each: -each.cpus,
    )
    descendants = sum(spent for key, spent in used.items() if key[0] in own and key[0] != os.getpid())
    ours = (own_after - own_before + descendants) / elapsed
    whole = (_busy(times_after) - _busy(times_before)) / elapsed
    seen = sum(each.cpus for each in culprits)
    stolen = (getattr(times_after, "steal", 0.0) - getattr(times_before, "steal", 0.0)) / elapsed
    # Each way of counting misses something: short-lived processes and the host, or what rounds to no tick at all.
    return Activity(max(seen + stolen, whole - ours, 0.0), stolen, psutil.cpu_count() or 1, tuple(culprits))


def check_quiet(*, strict: bool, seconds: float = 1.0) -> Activity:
    """Observe the machine.

    Raises:
        BusyMachineError: It is not quiet, and ``strict``.
    """
    activity = observe(seconds)
    if strict and not activity.quiet:
        raise BusyMachineError(activity.describe(names=True), hint="end them, or leave out --strict")
    return activity


def _process_times() -> dict[tuple[int, float], tuple[float, str]]:
    """Seconds of processor time and name of every process that can be seen, by pid and start."""
    import psutil

    found: dict[tuple[int, float], tuple[float, str]] = {}
    for process in psutil.process_iter(["name", "cpu_times", "create_time"]):
        times = process.info["cpu_times"]
        if times is not None:
            found[process.pid, process.info["create_time"]] = (times.user + times.system, process.info["name"] or "?")
    return found


def _own_pids() -> set[int]:
    import psutil

    process = psutil.Process()
    return {process.pid, *(child.pid for child in process.children(recursive=True))}


def _busy(times: tuple[float, ...]) -> float:
    """Seconds in which the processors did not wait, of ``psutil.cpu_times()``; guests are part of user already."""
    waiting = ("idle", "iowait", "guest", "guest_nice")
    return sum(times) - sum(getattr(times, name, 0.0) for name in waiting)
