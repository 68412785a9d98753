"""The library is built from its sources alone, again only where they changed, and mistakes are told."""

import ctypes
import importlib.util
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent
HEADER = "#pragma once\nint two();\n"
MAIN = '#include "deep/two.h"\nextern "C" __attribute__((visibility("default"))) int four() { return 2 * two(); }\n'
OWN = platform.machine() in {"x86_64", "AMD64"} and sys.platform == "linux"


@pytest.fixture
def build(monkeypatch, tmp_path):
    """The build script, in a folder of its own with two small sources."""
    path = FOLDER / "build_native.py"
    if not path.is_file():
        pytest.skip("needs a checkout or a source distribution")
    pytest.importorskip("ziglang", reason="the compiler")
    specification = importlib.util.spec_from_file_location("build_native", path)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "build_native", module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    (tmp_path / "native" / "deep").mkdir(parents=True)
    (tmp_path / "native" / "deep" / "two.h").write_text(HEADER)
    (tmp_path / "native" / "deep" / "two.cpp").write_text('#include "two.h"\nint two() { return 2; }\n')
    (tmp_path / "native" / "main.cpp").write_text(MAIN)
    return module


def objects(build):
    """When each object was made, by name."""
    found = {path.name: path.stat().st_ctime_ns for path in build.ROOT.glob("build/*/*.o")}
    return {name.rpartition("-")[0]: name for name in found}


def test_a_library_is_built_in_place(build):
    """It loads, and its functions are there."""
    path = build.build_in_place({})
    assert path.parent == build.PACKAGE
    assert ctypes.CDLL(str(path)).four() == 4


def test_builds_elsewhere_share_objects(build, monkeypatch, tmp_path_factory):
    """The same sources in another folder are the same objects: a wheel from a source distribution compiles nothing."""
    shared = {"PIO_KERNELS_BUILD": str(tmp_path_factory.mktemp("shared"))}
    first = build.build_library(shared)
    assert first.is_relative_to(shared["PIO_KERNELS_BUILD"])
    assert not (build.ROOT / "build").exists()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(build.ROOT, elsewhere)
    monkeypatch.setattr(build, "ROOT", elsewhere)
    compiled = []
    monkeypatch.setattr(build.Compiler, "run", lambda *arguments: compiled.append(arguments[-1]))
    assert (build.build_library(shared), compiled) == (first, [])


def test_building_again_compiles_what_changed(build, monkeypatch):
    """Nothing without a change; with one in a source, that source; with one in a header, all that include it."""
    compiled = []
    run = build.Compiler.run
    monkeypatch.setattr(
        build.Compiler, "run", lambda self, arguments, doing: (compiled.append(doing), run(self, arguments, doing))
    )
    first = build.build_library({})
    assert [doing.split()[0] for doing in compiled] == ["compiling", "compiling", "linking"]
    compiled.clear()
    assert build.build_library({}) == first
    assert compiled == []
    (build.ROOT / "native" / "main.cpp").write_text(MAIN.replace("2 * two", "3 * two"))
    assert build.build_library({}) != first
    assert compiled == ["compiling main.cpp", f"linking {first.name}"]
    compiled.clear()
    (build.ROOT / "native" / "deep" / "two.h").write_text(HEADER + "int three();\n")
    build.build_library({})
    assert sorted(compiled)[:2] == ["compiling main.cpp", "compiling two.cpp"]
    compiled.clear()
    build.build_library({"PIO_KERNELS_FLAGS": "-DNDEBUG"})
    assert len(compiled) == 3


def test_old_objects_are_forgotten(build, monkeypatch):
    """What no build has used for some days goes."""
    build.build_library({})
    before = objects(build)
    (build.ROOT / "native" / "main.cpp").write_text(MAIN + "// changed\n")
    later = build.time.time() + 8 * 24 * 3600
    monkeypatch.setattr(build.time, "time", lambda: later)
    for path in build.ROOT.glob("build/*/two-*.o"):
        build.os.utime(path, (later, later))
    build.build_library({})
    after = objects(build)
    assert after["deep-two"] == before["deep-two"]
    assert not [path for path in build.ROOT.glob("build/*/*.o") if path.name == before["main"]]


def test_an_error_in_a_source_shows_what_the_compiler_says(build):
    """The command, the place and the reason."""
    (build.ROOT / "native" / "main.cpp").write_text("int main( {}\n")
    with pytest.raises(build.BuildError, match=r"(?s)compiling main\.cpp failed .* c\+\+ .*main\.cpp:1:\d+: error"):
        build.build_library({})
    assert not list(build.ROOT.glob("build/*/.*"))


@pytest.mark.skipif(not OWN, reason="other linkers say it in other words")
def test_a_function_that_nobody_defines_is_an_error(build):
    """Found when linking, not when loading."""
    (build.ROOT / "native" / "deep" / "two.cpp").unlink()
    with pytest.raises(build.BuildError, match=r"(?s)linking .* failed .*two\(\)"):
        build.build_library({})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PIO_KERNELS_TARGET": "vax-vms"}, r"PIO_KERNELS_TARGET is 'vax-vms'; there are x86_64-linux-gnu, aarch64-"),
        ({"PIO_KERNELS_CXX": "no-such-compiler -O2"}, r"PIO_KERNELS_CXX is 'no-such-compiler -O2', which does not run"),
        (
            {"PIO_KERNELS_CXX": "c++", "PIO_KERNELS_TARGET": "x86_64-windows-gnu"},
            r"builds for \S+, and .* unset one of",
        ),
    ],
)
def test_wrong_settings_are_refused(build, environment, message):
    """By name and value, before anything is compiled."""
    with pytest.raises(build.BuildError, match=message):
        build.build_library(environment)


def test_a_missing_compiler_says_what_to_install(build, monkeypatch):
    """Without ziglang."""
    monkeypatch.setattr(build, "find_spec", lambda _: None)
    with pytest.raises(build.BuildError, match=r"`ziglang`.* is not installed: `pip install ziglang`"):
        build.build_library({})


def test_a_folder_without_sources_is_refused(build):
    """As a wheel's would be."""
    shutil.rmtree(build.ROOT / "native")
    with pytest.raises(build.BuildError, match=r"no sources in .*native; build from a checkout"):
        build.build_library({})


def test_a_machine_without_target_needs_a_compiler(build, monkeypatch):
    """Its name, what there is, and the way out."""
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    with pytest.raises(build.BuildError, match=r"no target for this machine, riscv64-.*PIO_KERNELS_CXX"):
        build.build_library({})


def test_an_installed_compiler_is_used_when_asked_for(build):
    """Its wheel says what machine it is for, as it is bound to the system's own C library."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    environment = {"PIO_KERNELS_CXX": "g++"}
    assert ctypes.CDLL(str(build.build_in_place(environment))).four() == 4
    assert build.chosen_target(environment).tag == re.sub(r"[-.]", "_", build.sysconfig.get_platform())


@pytest.mark.skipif(not OWN, reason="reads ELF objects for x86-64")
def test_no_instruction_set_shares_code(build, monkeypatch):
    """Objects for newer processors define nothing that another object could end up calling.

    An inline function that two objects define is linked from one of them: from the wrong one, it is an illegal
    instruction on an older processor.
    """
    monkeypatch.setattr(build, "ROOT", FOLDER)
    library = build.build_library({})
    newest = {
        stem: max(library.parents[1].glob(f"{stem}-*.o"), key=lambda p: p.stat().st_mtime) for stem in build._X86_64
    }
    for stem, path in newest.items():
        given = ("_kernelsEv", "_dot_probeEv")  # what hands the rest out, called where the processor is known
        names = [name for name in defined_symbols(path.read_bytes()) if not name.endswith(given)]
        assert [name for name in names if f"N3pio{len(stem)}{stem}" not in name] == []


def defined_symbols(elf):
    """Names that an ELF object of 64 bits defines for others (System V ABI, chapter 4)."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count = struct.unpack_from("<HH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size) for i in range(count)]
    for header in headers:
        if header[1] != 2:  # SHT_SYMTAB
            continue
        strings = headers[header[6]][4]
        for offset in range(header[4], header[4] + header[5], 24):
            name, info, _, section = struct.unpack_from("<IBBH", elf, offset)
            if section and info >> 4 in {1, 2}:  # STB_GLOBAL, STB_WEAK
                start = strings + name
                yield elf[start : elf.index(b"\0", start)].decode()


def test_the_script_builds_from_the_command_line(build, tmp_path):
    """It prints the library's path, or one line of what is wrong."""
    shutil.copy(FOLDER / "build_native.py", tmp_path)
    (tmp_path / "src" / "inference_pio" / "kernels").mkdir(parents=True)
    command = [sys.executable, str(tmp_path / "build_native.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r".*libpio_kernels\.\w+ \(\d+ KiB, \d+\.\d s\)\n", done.stdout)
    environment = {**build.os.environ, "PIO_KERNELS_TARGET": "vax-vms"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("pio-kernels: PIO_KERNELS_TARGET is 'vax-vms'")
