"""The native library loads or says why not, and runs only what the processor has."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inference_pio.interfaces import BrokenDependencyError, ConfigError, UnsupportedError
from inference_pio.kernels import _library
from inference_pio.kernels._library import (
    InstructionSet,
    choose_instruction_set,
    instruction_sets,
    load_library,
    open_library,
)

LIBRARY = Path(_library.__file__).with_name("libpio_kernels.so")


@pytest.fixture
def old_processor(monkeypatch):
    """A processor that runs the scalar kernels and AVX2."""
    known = tuple(
        InstructionSet(index=each.index, name=each.name, usable=each.name in {"scalar", "avx2"})
        for each in instruction_sets()
    )
    monkeypatch.setattr(_library, "instruction_sets", lambda: known)


def test_the_scalar_kernels_run_anywhere():
    """They are the first, under a name that does not change."""
    first, *others = instruction_sets()
    assert (first.name, first.usable) == ("scalar", True)
    assert {"avx2", "avx512", "avx512bf16", "neon"} <= {each.name for each in others}


def test_the_best_usable_set_is_chosen(old_processor):
    """Without a wish it is the last one that the processor runs."""
    assert choose_instruction_set(environment={}).name == "avx2"
    assert choose_instruction_set(environment={"PIO_KERNELS": ""}).name == "avx2"


def test_the_environment_forces_a_set(old_processor):
    """PIO_KERNELS names one; a name in code comes before it."""
    assert choose_instruction_set(environment={"PIO_KERNELS": "scalar"}).name == "scalar"
    assert choose_instruction_set("avx2", {"PIO_KERNELS": "scalar"}).name == "avx2"


def test_what_the_processor_lacks_is_refused(old_processor):
    """A forced set that cannot run is an error that names what can, never an illegal instruction; so is a setting."""
    with pytest.raises(ConfigError, match=r"PIO_KERNELS is 'avx512', which .* lacks \(usable here: scalar, avx2\)"):
        choose_instruction_set(environment={"PIO_KERNELS": "avx512"})
    with pytest.raises(UnsupportedError, match=r"instruction set is 'avx512bf16'"):
        choose_instruction_set("avx512bf16", {})


def test_an_unknown_set_is_refused(old_processor):
    """A name that no version knows is a mistake in the setting."""
    with pytest.raises(
        ConfigError, match=r"PIO_KERNELS is 'avx1024', and there is none .*\(usable here: scalar, avx2\)"
    ):
        choose_instruction_set(environment={"PIO_KERNELS": "avx1024"})


def test_the_library_itself_refuses_what_the_processor_lacks():
    """Also without Python's check: there are no kernels and no runtime to be had."""
    library = load_library()
    program = (ctypes.c_int32 * 8)(0, 0, 1, 16)
    unusable = [each.index for each in instruction_sets() if not each.usable]
    for index in [*unusable, -1, len(instruction_sets())]:
        assert library.pio_kernels(index) is None
        assert library.pio_isa_usable(index) == 0
        assert library.pio_runtime_new(ctypes.addressof(program), index, 1) is None


def test_a_missing_library_says_what_to_do(tmp_path):
    """No file: the path, and the way out."""
    with pytest.raises(BrokenDependencyError, match=r"no native library: .*libx\.so does not exist .*build_native\.py"):
        open_library(tmp_path / "libx.so")


def test_a_file_that_is_no_library_is_refused(tmp_path):
    """The system's reason is part of the message."""
    path = tmp_path / "libx.so"
    path.write_bytes(b"not a library")
    with pytest.raises(BrokenDependencyError, match=r"does not load: .*libx\.so"):
        open_library(path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a path to some other library")
def test_a_library_of_another_version_is_refused():
    """One that lacks a function is named before anything is called."""
    with pytest.raises(BrokenDependencyError, match=r"does not load: .*pio_runtime_new"):
        open_library(Path("libc.so.6")) if Path("libc.so.6").is_file() else open_library(_path_of_libc())


def _path_of_libc():
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return Path(re.search(r"(/\S*libc[.-]\S*)", maps)[1])


@pytest.mark.parametrize("nbytes", [1, 4096, 2**21, 2**22 + 1, 2**23])
def test_memory_is_zero_and_writable(nbytes):
    """Large blocks begin where a huge page may."""
    library = load_library()
    pointer = library.pio_memory_new(nbytes)
    array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))
    assert not array.any()
    array[:] = 255
    assert pointer % 64 == 0
    if nbytes >= 2**22 and sys.platform == "linux":
        assert pointer % 2**21 == 0
    library.pio_memory_free(pointer, nbytes)


def test_memory_that_is_not_there_is_null():
    """More than any machine has, and none at all."""
    assert load_library().pio_memory_new(2**62) is None
    assert load_library().pio_memory_new(0) is None
    assert load_library().pio_memory_new(-1) is None


@pytest.mark.parametrize("nbytes", [0, 1, 7, 63, 64, 65, 1000])
def test_a_checksum_sees_every_bit_and_the_length(nbytes):
    """Whatever changes, so does it; equal bytes elsewhere have the same."""
    library = load_library()
    data = np.random.default_rng(3).integers(0, 256, nbytes + 1, dtype=np.uint8)
    copy = np.concatenate([data[:1], data])[1:]

    def checksum(array, size=nbytes):
        return library.pio_checksum(array.ctypes.data, size)

    seen = {checksum(data), checksum(data, nbytes + 1)}
    assert checksum(copy) in seen
    for bit in range(8 * nbytes):
        data[bit // 8] ^= 1 << (bit % 8)
        seen.add(checksum(data))
        data[bit // 8] ^= 1 << (bit % 8)
    assert len(seen) == 2 + 8 * nbytes


def test_a_checksum_sees_what_is_swapped_or_flipped_twice():
    """Neighbours that change places, rows of zeros, and the same bit of two words."""
    library = load_library()
    data = np.arange(512, dtype=np.uint64)
    seen = {library.pio_checksum(data.ctypes.data, data.nbytes)}
    for other in (1, 8, 16, 511):
        swapped = data.copy()
        swapped[[0, other]] = swapped[[other, 0]]
        seen.add(library.pio_checksum(swapped.ctypes.data, swapped.nbytes))
        flipped = data.copy()
        flipped[[0, other]] ^= np.uint64(2**63)
        seen.add(library.pio_checksum(flipped.ctypes.data, flipped.nbytes))
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("processor", "sets"),
    [
        ("Nehalem", "scalar"),
        ("Haswell", "scalar avx2"),
        ("Haswell,-bmi2", "scalar"),
        ("Haswell,-xsave", "scalar"),
    ],
)
def test_an_emulated_processor_runs_what_it_has(tmp_path, processor, sets):
    """The library loads on a processor without AVX, says so, and computes there."""
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if emulator is None or sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("needs qemu-x86_64 (user mode) on Linux")
    pytest.importorskip("ziglang", reason="compiles a program to emulate")
    source = Path(__file__).parent / "native" / "emulated.cpp"
    command = [sys.executable, "-m", "ziglang", "c++", "-target", "x86_64-linux-gnu.2.28", "-mcpu=x86_64"]
    program = tmp_path / "emulated"
    subprocess.run([*command, "-nostdlib++", "-ldl", str(source), "-o", str(program)], check=True, capture_output=True)
    done = subprocess.run(
        [emulator, "-cpu", processor, str(program), str(LIBRARY)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{sets} 321\n")
