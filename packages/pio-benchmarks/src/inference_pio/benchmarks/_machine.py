"""The fingerprint of a machine: what a figure depends on besides the code, and nothing that names the machine."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_pio.benchmarks._fields import Fields

# What decides how fast a model runs on a CPU; the rest of the flags would only be noise.
_INSTRUCTION_SETS = (
    "sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16",
    "sve", "sve2", "sme",
)  # fmt: skip
_LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and what is installed on it, as far as figures depend on them. Holds no host, user or path.

    Attributes:
        cpu: Model name of the processor.
        architecture: Such as ``"x86_64"``.
        instruction_sets: Those that matter here, by the kernel's names, sorted; empty where the system does not tell.
        physical_cores: Cores without their hyper-threads, or None if unknown.
        logical_cores: Processors that the system has.
        usable_cpus: Processors that this process may run on (affinity).
        cpu_limit: Processors' worth of time that the control group allows, or None without a limit.
        memory_bytes: Installed memory, or None if unknown.
        system: Operating system and its release.
        python: Implementation and version.
        distributions: Versions of our distributions and of the libraries that compute.
        gpus: Names and driver, one per device.
    """

    cpu: str
    architecture: str
    instruction_sets: tuple[str, ...]
    physical_cores: int | None
    logical_cores: int
    usable_cpus: int
    cpu_limit: float | None
    memory_bytes: int | None
    system: str
    python: str
    distributions: Mapping[str, str]
    gpus: tuple[str, ...]


def describe_machine() -> Machine:
    """The fingerprint of this machine."""
    import psutil

    cpuinfo = _read(Path("/proc/cpuinfo"))
    logical = psutil.cpu_count() or os.cpu_count() or 1
    return Machine(
        cpu=_cpu_name(cpuinfo),
        architecture=platform.machine() or "unknown",
        instruction_sets=_instruction_sets(cpuinfo),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=logical,
        usable_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical,
        cpu_limit=cgroup_cpu_limit(Path("/sys/fs/cgroup"), _read(Path("/proc/self/cgroup"))),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}".strip() or "unknown",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        distributions=_distributions(),
        gpus=_gpus(),
    )


def machine_differences(left: Machine, right: Machine) -> list[str]:
    """In what the hardware of two machines differs, each as ``"cpu: A, B"``; software is not compared.

    Memory counts in whole GiB, since what a system reports varies a little from boot to boot.
    """
    names = (
        "cpu",
        "architecture",
        "instruction_sets",
        "physical_cores",
        "logical_cores",
        "usable_cpus",
        "cpu_limit",
        "gpus",
    )
    pairs = [(name, getattr(left, name), getattr(right, name)) for name in names]
    pairs.append(("memory_gib", _gib(left.memory_bytes), _gib(right.memory_bytes)))
    return [f"{name}: {_shown(one)}, {_shown(other)}" for name, one, other in pairs if one != other]


def default_threads(machine: Machine) -> int:
    """Threads worth starting: physical cores within the affinity and the control group's limit, at least one."""
    bounds = [machine.usable_cpus, machine.physical_cores or machine.logical_cores]
    if machine.cpu_limit is not None:
        bounds.append(math.ceil(machine.cpu_limit))
    return max(1, min(bounds))


def machine_to_json(machine: Machine) -> dict[str, object]:
    """The object that :func:`machine_from_json` reads."""
    return {
        "cpu": machine.cpu,
        "architecture": machine.architecture,
        "instruction_sets": list(machine.instruction_sets),
        "physical_cores": machine.physical_cores,
        "logical_cores": machine.logical_cores,
        "usable_cpus": machine.usable_cpus,
        "cpu_limit": machine.cpu_limit,
        "memory_bytes": machine.memory_bytes,
        "system": machine.system,
        "python": machine.python,
        "distributions": dict(machine.distributions),
        "gpus": list(machine.gpus),
    }


def machine_from_json(fields: Fields) -> Machine:
    """The machine of a record.

    Raises:
        MalformedFileError: A key is missing, unknown or of the wrong type.
    """
    fields.keys(
        (
            "cpu", "architecture", "instruction_sets", "physical_cores", "logical_cores", "usable_cpus", "cpu_limit",
            "memory_bytes", "system", "python", "distributions", "gpus",
        )
    )  # fmt: skip
    return Machine(
        cpu=fields.text("cpu"),
        architecture=fields.text("architecture"),
        instruction_sets=fields.texts("instruction_sets"),
        physical_cores=fields.optional_integer("physical_cores"),
        logical_cores=fields.integer("logical_cores", minimum=1),
        usable_cpus=fields.integer("usable_cpus", minimum=1),
        cpu_limit=fields.optional_positive("cpu_limit"),
        memory_bytes=fields.optional_integer("memory_bytes"),
        system=fields.text("system"),
        python=fields.text("python"),
        distributions=fields.text_mapping("distributions"),
        gpus=fields.texts("gpus"),
    )


def cgroup_cpu_limit(root: Path, membership: str) -> float | None:
    """The smallest quota of processor time, in processors, of a process's control group and of those above it.

    Args:
        root: Where control groups are mounted (version 2, or version 1 with its ``cpu`` controller below).
        membership: Text of ``/proc/self/cgroup``.
    """
    limits: list[float] = []
    for line in membership.splitlines():
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers not in {"", "cpu", "cpu,cpuacct"}:
            continue
        mount = root / controllers if controllers else root
        folder = mount / path.lstrip("/")
        # Inside a container the path may be the host's, of which only the mounted root is visible.
        for group in (folder, *folder.parents):
            if not group.is_relative_to(mount):
                break
            limit = _quota(group)
            limits += [] if limit is None else [limit]
    return min(limits, default=None)


def _quota(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    if not period:
        quota, period = _read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()
    if not (quota.isdigit() and period.isdigit()) or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def _cpu_name(cpuinfo: str) -> str:
    if name := _field(cpuinfo, "model name"):
        return name
    if platform.system() == "Darwin" and (name := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return name
    return platform.processor() or platform.machine() or "unknown"


def _instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return tuple(sorted(flags.intersection(_INSTRUCTION_SETS)))


def _distributions() -> dict[str, str]:
    found = {dist.name: dist.version for dist in importlib.metadata.distributions()}
    own = (name for name in found if name == "inference-pio" or name.startswith("pio-"))
    return {name: found[name] for name in sorted({*own, *(name for name in _LIBRARIES if name in found)})}


def _gpus() -> tuple[str, ...]:
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return tuple(line.strip() for line in listed.splitlines() if line.strip())


def _output(*command: str) -> str:
    """What a program of the system writes; nothing where there is none, or where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _field(text: str, name: str) -> str | None:
    """The value of the first ``name : value`` line."""
    match = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _read(path: Path) -> str:
    """A file of the kernel's, or nothing where the system has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gib(count: int | None) -> int | None:
    return None if count is None else round(count / _GIB)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
