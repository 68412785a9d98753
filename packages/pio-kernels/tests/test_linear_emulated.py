"""Products of instruction sets that this machine lacks, run by an emulator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_neon_agrees_with_the_scalar_kernels(tmp_path: Path) -> None:
    """Rows, and products of every tile format, shape and epilogue, are those of the scalar kernels within rounding."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("needs qemu-aarch64 (user mode)")
    pytest.importorskip("ziglang", reason="compiles a program to emulate")
    native = ROOT / "native"
    sources = [*sorted((native / "scalar").glob("*.cpp")), ROOT / "tests" / "native" / "agreement.cpp"]
    sources += [native / name for name in ("scalar.cpp", "neon.cpp", "avx2.cpp", "attention_plan.cpp")]
    program = tmp_path / "agreement"
    command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-mcpu=generic+dotprod"]
    flags = ["-static", "-std=c++17", "-O2", "-nostdlib++", "-fno-exceptions", "-fno-rtti", "-fno-math-errno"]
    subprocess.run([*command, *flags, *map(str, sources), "-o", str(program)], check=True, capture_output=True)
    done = subprocess.run([emulator, str(program)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "neon: 423886 numbers agree\n"
