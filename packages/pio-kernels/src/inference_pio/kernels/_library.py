"""The native library: where it is, what its functions take, and which instruction set they run with."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from inference_pio.interfaces import BrokenDependencyError, ConfigError, UnsupportedError
from inference_pio.kernels._threads import default_threads

__all__ = ["InstructionSet", "choose_instruction_set", "default_threads", "instruction_sets", "load_library"]

ISA_VARIABLE = "PIO_KERNELS"
"""Environment variable that forces an instruction set by name."""

_SUFFIXES = {"darwin": "dylib", "win32": "dll"}

# Functions of native/program.h: what each gives and takes. Structures are passed by address.
_I32, _I64, _U32, _U64, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_Functions = Mapping[str, tuple[type[Any] | None, tuple[type[Any], ...]]]
_FUNCTIONS: _Functions = MappingProxyType(
    {
        "pio_runtime_new": (_POINTER, (_POINTER, _I32, _I32)),
        "pio_runtime_free": (None, (_POINTER,)),
        "pio_runtime_step": (_I32, (_POINTER, _POINTER)),
        "pio_runtime_sample": (_I32, (_POINTER, _POINTER, _POINTER)),
        "pio_isa_name": (ctypes.c_char_p, (_I32,)),
        "pio_isa_usable": (_I32, (_I32,)),
        "pio_kernels": (_POINTER, (_I32,)),
        "pio_page_bytes": (_I64, (_U32, _I32, _I32, _I32)),
        "pio_strip_bytes": (_I64, (_U32, _I32)),
        "pio_pack": (_I32, (_U32, _I32, _POINTER, _I32, _I32, _POINTER, _POINTER, _I32, _I32)),
        "pio_memory_new": (_POINTER, (_I64,)),
        "pio_memory_free": (None, (_POINTER, _I64)),
        "pio_checksum": (_U64, (_POINTER, _I64)),
        "pio_probe_read": (_U64, (_POINTER, _I64)),
        "pio_probe_dots": (_I32, (_I32, _POINTER, _POINTER, _I64, _POINTER)),
    }
)


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """Instructions that the library has kernels for.

    Attributes:
        index: As the library numbers it.
        name: ``scalar``, ``avx2``, ...
        usable: This build has its kernels, and this processor and system run them.
    """

    index: int
    name: str
    usable: bool


@cache
def load_library() -> ctypes.CDLL:
    """The native library, with the functions of ``native/program.h``; loaded once.

    Raises:
        BrokenDependencyError: It is not there, not made for this machine, or of another version.
    """
    return open_library(Path(__file__).with_name(f"libpio_kernels.{_SUFFIXES.get(sys.platform, 'so')}"))


def open_library(path: Path) -> ctypes.CDLL:
    """The native library at ``path``.

    Raises:
        BrokenDependencyError: As :func:`load_library`.
    """
    hint = "install a wheel of pio-kernels for this platform; in a checkout, run packages/pio-kernels/build_native.py"
    if not path.is_file():
        raise BrokenDependencyError(f"pio-kernels has no native library: {path} does not exist", hint=hint)
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise BrokenDependencyError(f"the native library of pio-kernels does not load: {error}", hint=hint) from error
    return library


def instruction_sets() -> tuple[InstructionSet, ...]:
    """All instruction sets that the library knows, best last; ``scalar`` is always usable.

    Raises:
        BrokenDependencyError: As :func:`load_library`.
    """
    library = load_library()
    found: list[InstructionSet] = []
    while (name := library.pio_isa_name(len(found))) is not None:
        index = len(found)
        found.append(InstructionSet(index=index, name=name.decode(), usable=bool(library.pio_isa_usable(index))))
    return tuple(found)


def choose_instruction_set(name: str | None = None, environment: Mapping[str, str] | None = None) -> InstructionSet:
    """The instruction set called ``name``; without a name that of ``PIO_KERNELS``, or else the best usable one.

    Args:
        name: ``scalar``, ``avx2``, ...
        environment: Instead of the process's own.

    Raises:
        ConfigError: There is none of that name; or ``PIO_KERNELS`` names one that cannot run here, since who forces one
            is not to get something else without a word.
        UnsupportedError: This processor cannot run ``name``, or this build lacks it.
        BrokenDependencyError: As :func:`load_library`.
    """
    known = instruction_sets()
    usable = [each for each in known if each.usable]
    wanted = name or (os.environ if environment is None else environment).get(ISA_VARIABLE)
    if not wanted:
        return usable[-1]
    origin = "instruction set" if name else ISA_VARIABLE
    choices = ", ".join(each.name for each in usable)
    for each in known:
        if each.name == wanted:
            if not each.usable:
                message = f"{origin} is {wanted!r}, which this processor or this build of pio-kernels lacks"
                raise (UnsupportedError if name else ConfigError)(message, hint=f"usable here: {choices}")
            return each
    raise ConfigError(f"{origin} is {wanted!r}, and there is none of that name", hint=f"usable here: {choices}")
