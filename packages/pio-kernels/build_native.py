"""Compiles ``native/`` into the one shared library of this distribution.

``python build_native.py`` builds for the machine it runs on, into the source tree, which is what an editable install
does too. The compiler is Clang as the distribution ``ziglang`` carries it, so nothing needs to be installed, and every
target can be built from every machine. Objects are kept by the hash of what they are made from, so building again
compiles what has changed.

Environment:
    PIO_KERNELS_TARGET: One of ``TARGETS``; the machine's own unless said otherwise.
    PIO_KERNELS_CXX: An installed compiler to use instead, for the machine's own target alone.
    PIO_KERNELS_FLAGS: More flags for compiling and linking, such as ``-fsanitize=undefined``.
    PIO_KERNELS_BUILD: Folder of the objects, which builds elsewhere may share; ``build/`` beside this file otherwise.

Knows nothing of hatchling; ``hatch_build.py`` puts the result into a wheel.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "src" / "inference_pio" / "kernels"

_STANDARD = ("-std=c++17", "-O3", "-Wall", "-Wextra", "-g0")
_FREESTANDING = ("-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fno-threadsafe-statics")
_COMPILE = (*_STANDARD, *_FREESTANDING, "-fPIC", "-fvisibility=hidden", "-ffp-contract=on")
_DAYS_KEPT = 7
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Target:
    """A platform that the library is built for.

    Attributes:
        triple: What ``zig c++ -target`` is given, with the oldest C library or system that it shall run on.
        tag: Platform tag of the wheel.
        library: File name of the library.
        link: Flags for linking.
    """

    triple: str
    tag: str
    library: str
    link: tuple[str, ...]

    @property
    def processor(self) -> str:
        """``x86_64`` or ``aarch64``."""
        return self.triple.partition("-")[0]


_ELF = ("libpio_kernels.so", ("-s", "-Wl,--no-undefined", "-lpthread", "-lm"))
_MACH_O = ("libpio_kernels.dylib", ("-s", "-Wl,-install_name,@rpath/libpio_kernels.dylib"))
_PE = ("libpio_kernels.dll", ("-s",))

_WITHOUT_STANDARD_LIBRARY = (
    ("-nodefaultlibs", "-lc") if sys.platform == "darwin" else ("-nodefaultlibs", "-lc", "-lgcc")
)
"""Flags of installed compilers, some of which do not know ``-nostdlib++``."""

TARGETS = {
    "x86_64-linux-gnu": Target("x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64", *_ELF),
    "aarch64-linux-gnu": Target("aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64", *_ELF),
    "x86_64-macos": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", *_MACH_O),
    "aarch64-macos": Target("aarch64-macos.11.0", "macosx_11_0_arm64", *_MACH_O),
    "x86_64-windows-gnu": Target("x86_64-windows-gnu", "win_amd64", *_PE),
}

_X86_64 = {
    "avx2": ("v3",),
    "avx2vnni": ("v3", "avxvnni"),
    "avx512": ("v4", "avx512vnni"),
    "avx512bf16": ("v4", "avx512vnni", "avx512bf16"),
}
"""Level of the processor, and what it has beyond that, by the file that is compiled for it."""

_AARCH64 = {"neon": ("dotprod",)}


class BuildError(Exception):
    """The library could not be built; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """How files are compiled and linked.

    Attributes:
        command: The program and what it is always given.
        identity: Changes when its output may.
        is_zig: Whether instruction sets are named as Zig names them.
        flags: More flags, for compiling and for linking.
    """

    command: tuple[str, ...]
    identity: str
    is_zig: bool
    flags: tuple[str, ...]

    def instruction_set(self, source: Path, target: Target) -> tuple[str, ...]:
        """Flags for the processor that ``source`` is written for."""
        if target.processor == "x86_64":
            level, *features = _X86_64.get(source.stem, ("",))
            if self.is_zig:
                name = "x86_64" + (f"_{level}" if level else "")
                return (f"-mcpu={'+'.join([name, *features])}",)
            name = "x86-64" + (f"-{level}" if level else "")
            return (f"-march={name}", *(f"-m{feature}" for feature in features))
        features = list(_AARCH64.get(source.stem, ()))
        return ("+".join(["-mcpu=generic" if self.is_zig else "-march=armv8.2-a", *features]),)

    def run(self, arguments: Iterable[str], doing: str) -> None:
        """Run it; what it warns of goes to stderr.

        Raises:
            BuildError: It failed, with its output.
        """
        command = [*self.command, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a compiler
        except OSError as error:
            message = f"cannot run {command[0]!r}: {error}; name a compiler in PIO_KERNELS_CXX, or unset it"
            raise BuildError(message) from error
        if done.returncode != 0:
            message = f"{doing} failed with exit code {done.returncode}:\n{shlex.join(command)}\n{done.stderr}"
            raise BuildError(message)
        sys.stderr.write(done.stderr)


def main() -> None:
    """Build for this machine, into the source tree."""
    start = time.perf_counter()
    try:
        path = build_in_place(os.environ)
    except BuildError as error:
        sys.exit(f"pio-kernels: {error}")
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{path} ({path.stat().st_size / 1024:.0f} KiB, {seconds:.1f} s)\n")


def build_in_place(environment: Mapping[str, str]) -> Path:
    """Build the library into the source tree; returns its path.

    A process that has the old one loaded keeps it.

    Raises:
        BuildError: As :func:`build_library`.
    """
    library = build_library(environment)
    place = PACKAGE / library.name
    if not place.is_file() or place.read_bytes() != library.read_bytes():
        with _new_file(place) as new:
            shutil.copyfile(library, new)
    return place


def build_library(environment: Mapping[str, str]) -> Path:
    """Compile what has changed and link it; returns the library, in a folder of what was built before.

    Raises:
        BuildError: An unknown target, no compiler, or an error in the sources.
    """
    target, compiler = chosen_target(environment), chosen_compiler(environment)
    sources = sorted((ROOT / "native").rglob("*.cpp"))
    if not sources:
        message = f"no sources in {ROOT / 'native'}; build from a checkout or a source distribution"
        raise BuildError(message)
    folder = Path(environment.get("PIO_KERNELS_BUILD") or ROOT / "build") / target.triple
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_processors()) as pool:
        objects = list(pool.map(lambda source: _compile(source, target, compiler, folder), sources))
    library = _link(objects, target, compiler, folder)
    _forget(folder, {library.parent, *objects})
    return library


def chosen_target(environment: Mapping[str, str]) -> Target:
    """What is built for.

    Raises:
        BuildError: A target that is not one of ``TARGETS``, with an installed compiler any but the machine's own.
    """
    name = environment.get("PIO_KERNELS_TARGET", "")
    choices = f"there are {', '.join(TARGETS)}"
    if name and name not in TARGETS:
        message = f"PIO_KERNELS_TARGET is {name!r}; {choices}"
        raise BuildError(message)
    processor = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    system = {"linux": "linux-gnu", "darwin": "macos", "win32": "windows-gnu"}.get(sys.platform, sys.platform)
    own = f"{processor}-{system}"
    if environment.get("PIO_KERNELS_CXX"):
        if name not in {"", own}:
            message = f"PIO_KERNELS_CXX builds for {own}, and PIO_KERNELS_TARGET is {name!r}; unset one of them"
            raise BuildError(message)
        tag = re.sub(r"[-.]", "_", sysconfig.get_platform())
        library, link = {"darwin": _MACH_O, "win32": _PE}.get(sys.platform, _ELF)
        return Target(own, tag, library, (*link, *_WITHOUT_STANDARD_LIBRARY))
    if not name and own not in TARGETS:
        message = f"no target for this machine, {own}: {choices}; or name an installed compiler in PIO_KERNELS_CXX"
        raise BuildError(message)
    return TARGETS[name or own]


def chosen_compiler(environment: Mapping[str, str]) -> Compiler:
    """What compiles.

    Raises:
        BuildError: ``ziglang`` is not installed, or the compiler that was asked for does not run.
    """
    flags = tuple(shlex.split(environment.get("PIO_KERNELS_FLAGS", "")))
    if installed := environment.get("PIO_KERNELS_CXX"):
        command = tuple(shlex.split(installed))
        try:
            told = [*command, "--version"]
            done = subprocess.run(told, capture_output=True, text=True, check=True)  # noqa: S603 - a compiler
        except (OSError, subprocess.CalledProcessError) as error:
            message = f"PIO_KERNELS_CXX is {installed!r}, which does not run: {error}"
            raise BuildError(message) from error
        return Compiler(command, done.stdout, is_zig=False, flags=flags)
    if find_spec("ziglang") is None:
        message = "the distribution `ziglang`, which carries the compiler, is not installed: `pip install ziglang`"
        raise BuildError(message)
    command = (sys.executable, "-m", "ziglang", "c++", "-nostdlib++")
    return Compiler(command, f"ziglang {version('ziglang')}", is_zig=True, flags=flags)


def _compile(source: Path, target: Target, compiler: Compiler, folder: Path) -> Path:
    flags = (*_COMPILE, *compiler.instruction_set(source, target), *compiler.flags)
    made_from = [compiler.identity, target.triple, *flags]
    for path in sorted(_with_headers(source)):
        made_from += [path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")]
    name = "-".join(source.relative_to(ROOT / "native").with_suffix("").parts)
    result = folder / f"{name}-{_hash(made_from)}.o"
    if not result.is_file():
        where = ("-target", target.triple) if compiler.is_zig else ()
        with _new_file(result) as new:
            compiler.run([*where, *flags, "-c", str(source), "-o", str(new)], f"compiling {source.name}")
    result.touch()
    return result


def _link(objects: list[Path], target: Target, compiler: Compiler, folder: Path) -> Path:
    flags = ("-shared", *_without_runtime(target, compiler), *target.link, *compiler.flags)
    # Windows' linker leaves more files beside the library, so that it has a folder of its own.
    place = folder / _hash([compiler.identity, *flags, *(path.name for path in objects)])
    result = place / target.library
    if not result.is_file():
        where = ("-target", target.triple) if compiler.is_zig else ()
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            new = Path(temporary) / target.library
            arguments = [*where, *map(str, objects), *flags, "-o", str(new)]
            compiler.run(arguments, f"linking {target.library}")
            place.mkdir(exist_ok=True)
            new.replace(result)
    place.touch()
    return result


def _without_runtime(target: Target, compiler: Compiler) -> tuple[str, ...]:
    """Flags that leave out what Zig compiles, for longer than a kernel, before it links anything for the first time.

    The library needs none of it, but what checks it at run time does, which only more flags ask for.
    """
    return ("-nostdlib", "-lc") if compiler.is_zig and target.library == _ELF[0] and not compiler.flags else ()


def _with_headers(source: Path) -> set[Path]:
    """``source`` and all files of ours that it includes."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            named = (path.parent / name for name in _INCLUDE.findall(path.read_text(encoding="utf-8")))
            waiting += [header.resolve() for header in named if header.is_file()]
    return found


def _forget(folder: Path, used: set[Path]) -> None:
    """Remove what no build has used for some days."""
    oldest = time.time() - _DAYS_KEPT * 24 * 3600
    for path in folder.iterdir():
        if path not in used and path.stat().st_mtime < oldest:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` if all goes well, so that none is ever seen half written."""
    new = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
