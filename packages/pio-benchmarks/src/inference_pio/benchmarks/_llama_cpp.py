"""llama.cpp's programs on this machine: found in a folder, or built once into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import BrokenDependencyError, ModelNotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-quantize", "llama-completion", "llama-server")
"""What is built. The last two are for people who want to talk with the rival; no runner needs them."""
NEEDED = PROGRAMS[:3]
"""What the runners call."""
ENVIRONMENT = {"LC_ALL": "C", "LLAMA_LOG_COLORS": "off"}
"""Plain text and decimal points, whatever the user's locale."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A build of llama.cpp.

    Attributes:
        folder: Holds the programs.
        version: Of the source distribution, or ``"given"`` for a folder that the user named.
    """

    folder: Path
    version: str

    def program(self, name: str) -> Path:
        """Where the program ``name`` is."""
        return self.folder / (f"{name}.exe" if os.name == "nt" else name)


def use_llama_cpp(folder: Path) -> LlamaCpp:
    """The build in ``folder``, or in its ``bin``, ``build/bin`` or ``bin/Release``.

    Raises:
        ModelNotFoundError: A program that the runners need is not there.
    """
    for candidate in (folder, folder / "bin", folder / "build" / "bin", folder / "build" / "bin" / "Release"):
        build = LlamaCpp(candidate.resolve(), "given")
        if all(build.program(name).is_file() for name in NEEDED):
            return build
    raise ModelNotFoundError(
        f"no build of llama.cpp in {str(folder)!r}: it must hold {', '.join(NEEDED)}",
        hint="build these targets there, or leave --llama-cpp out to have them built",
    )


def quantise_q4_0(build: LlamaCpp, model: Path, cache: Path, progress: Callable[[str], None]) -> Path:
    """The GGUF file ``model`` with its matrices as Q4_0, llama.cpp's fastest format; made once, then kept.

    Args:
        build: Quantises.
        model: A GGUF file.
        cache: Folder of the benchmarks' cache.
        progress: Told what is being done.

    Raises:
        UnsupportedError: ``model`` is no GGUF file.
        BrokenDependencyError: llama-quantize fails; the message ends with its own last line.
    """
    if model.suffix != ".gguf":
        raise UnsupportedError(f"llama.cpp reads GGUF files, not {model.name!r}", hint="give a .gguf file")
    target = cache / "models" / f"{model.stem}-{_identity(model)}-q4_0.gguf"
    if target.is_file():
        return target
    progress(f"making a Q4_0 file of {model.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        run_program(build, "llama-quantize", ["--allow-requantize", str(model), str(partial), "Q4_0"])
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def run_program(build: LlamaCpp, name: str, arguments: list[str]) -> str:
    """Run a program of ``build`` to its end.

    Returns:
        Its standard output.

    Raises:
        BrokenDependencyError: It cannot be started or fails; the message ends with its own last line.
    """
    command = [str(build.program(name)), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env=os.environ | ENVIRONMENT
        )
    except OSError as error:
        raise BrokenDependencyError(
            f"{name} cannot be started: {error.strerror}", hint="check the folder given to --llama-cpp"
        ) from error
    if done.returncode != 0:
        raise BrokenDependencyError(f"{name} failed with exit code {done.returncode}: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line of ``text`` that says something; a placeholder if none does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def program_path(name: str) -> Path | None:
    """A program in the environment of this interpreter, else on the user's path, else None."""
    import sys

    own = shutil.which(name, path=str(Path(sys.executable).parent))
    found = own or shutil.which(name)
    return None if found is None else Path(found)


def _identity(model: Path) -> str:
    """Tells files of one name apart: of size, time of change and the first MiB."""
    facts = model.stat()
    digest = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns} ".encode())
    with model.open("rb") as file:
        digest.update(file.read(2**20))
    return digest.hexdigest()[:12]
