"""Facts about the installation and the machine, without importing anything heavy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

# What decides how fast a model runs on a CPU; the rest of the flags would only be noise.
_CPU_FEATURES = (
    "sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16",
    "sve", "sve2", "sme",
)  # fmt: skip
_LIBRARIES = (
    "torch", "numpy", "safetensors", "tokenizers", "jinja2", "msgspec", "huggingface-hub", "click", "rich",
    "flash-attn", "triton",
)  # fmt: skip


def describe_installation() -> dict[str, object]:
    """Versions, processor, memory, places and ``PIO_*`` variables; a fact that the system does not tell is None."""
    from inference_pio.config import Settings, cache_dir

    cpuinfo = _read("/proc/cpuinfo")
    return {
        "pio": _version("inference-pio"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "executable": sys.executable,
        "cpu": _field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_features": _cpu_features(cpuinfo),
        "memory_bytes": _memory_bytes(),
        "gpu_driver": _field(_read("/proc/driver/nvidia/version"), "NVRM version"),
        "distributions": _own_distributions(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
        "models": _families(),
        "cache": str(cache_dir(Settings())),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith("PIO_")},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _own_distributions() -> dict[str, str]:
    found = ((dist.name, dist.version) for dist in importlib.metadata.distributions())
    return dict(sorted(pair for pair in found if pair[0] == "inference-pio" or pair[0].startswith("pio-")))


def _families() -> dict[str, str]:
    """Architectures of installed model families by the distribution that brings them."""
    found: dict[str, list[str]] = {}
    for entry_point in importlib.metadata.entry_points(group="inference_pio.models"):
        name = entry_point.dist.name if entry_point.dist is not None else entry_point.value
        found.setdefault(name, []).append(entry_point.name)
    return {name: ", ".join(sorted(architectures)) for name, architectures in sorted(found.items())}


def _cpu_features(cpuinfo: str) -> list[str]:
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return [feature for feature in _CPU_FEATURES if feature in flags]


def _memory_bytes() -> int | None:
    total = _field(_read("/proc/meminfo"), "MemTotal")
    if total is not None:
        return int(total.split()[0]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _field(text: str, name: str) -> str | None:
    """The value of the first ``name : value`` line."""
    match = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _read(path: str) -> str:
    """A file of the kernel's, or nothing where the system has none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
