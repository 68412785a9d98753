"""What a native library is built for and which libraries it needs, read from its own headers."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_BYTES = 2**20
"""Bytes that a wheel with a library may have: the kernels are small, and are to stay so."""

_PROCESSORS = {
    "ELF": {62: "x86_64", 183: "aarch64"},
    "Mach-O": {0x01000007: "x86_64", 0x0100000C: "aarch64"},
    "PE": {0x8664: "x86_64", 0xAA64: "aarch64"},
}
_WHEEL_TAGS = {
    "manylinux": "ELF",
    "macosx": "Mach-O",
    "win": "PE",
}
_SYSTEM_LIBRARIES = {
    "ELF": ("libc.so.", "libm.so.", "libpthread.so.", "ld-linux"),
    "Mach-O": ("/usr/lib/libSystem.",),
    "PE": ("kernel32.dll", "api-ms-win-crt-", "ucrtbase.dll", "ntdll.dll"),
}


@dataclass(frozen=True, slots=True)
class Library:
    """A shared library.

    Attributes:
        form: ``ELF``, ``Mach-O`` or ``PE``.
        processor: ``x86_64`` or ``aarch64``.
        needs: Libraries that are loaded with it.
    """

    form: str
    processor: str
    needs: tuple[str, ...]


def check_library_wheel(wheel: Path) -> list[str]:
    """Problems of ``wheel``, which is to hold one native library for the platform in its name: one line each."""
    tags, platform = wheel.stem.split("-")[2:4], wheel.stem.split("-")[4]
    problems = [] if tags == ["py3", "none"] else [f"is tagged {'-'.join(tags)}, not py3-none"]
    if (size := wheel.stat().st_size) > MOST_BYTES:
        problems.append(f"has {size} bytes, more than {MOST_BYTES}")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith((".so", ".dylib", ".dll"))]
        if len(libraries) != 1:
            return [*problems, f"holds {len(libraries)} libraries: {', '.join(libraries) or 'none'}"]
        return problems + check_library(archive.read(libraries[0]), platform)


def check_library(data: bytes, tag: str) -> list[str]:
    """Problems of the library ``data`` in a wheel with the platform tag ``tag``: one line each."""
    try:
        library = read_library(data)
    except (ValueError, struct.error, KeyError) as error:
        return [f"no library that can be read: {error}"]
    form = next((form for prefix, form in _WHEEL_TAGS.items() if tag.startswith(prefix)), "unknown")
    processor = "aarch64" if tag.endswith(("arm64", "aarch64")) else "x86_64"
    problems = []
    if (library.form, library.processor) != (form, processor):
        problems.append(f"is {library.form} for {library.processor}, and {tag} wants {form} for {processor}")
    allowed = _SYSTEM_LIBRARIES[library.form]
    strangers = [name for name in library.needs if not name.lower().startswith(tuple(map(str.lower, allowed)))]
    return problems + [f"needs {name}, which is not the system's" for name in strangers]


def read_library(data: bytes) -> Library:
    """What the headers of the 64-bit shared library ``data`` say.

    Raises:
        ValueError: Not a library of a known form.
        struct.error: One that is cut off.
        KeyError: For another processor.
    """
    if data[:4] == b"\x7fELF":
        form, code, needs = "ELF", *struct.unpack_from("<H", data, 18), _needs_of_elf(data)
    elif data[:4] == b"\xcf\xfa\xed\xfe":
        form, code, needs = "Mach-O", *struct.unpack_from("<I", data, 4), _needs_of_mach_o(data)
    elif data[:2] == b"MZ":
        (header,) = struct.unpack_from("<I", data, 0x3C)
        form, code, needs = "PE", *struct.unpack_from("<H", data, header + 4), _needs_of_pe(data, header)
    else:
        message = f"begins with {data[:4]!r}"
        raise ValueError(message)
    return Library(form, _PROCESSORS[form][code], tuple(needs))


def _needs_of_elf(data: bytes) -> Iterator[str]:
    """DT_NEEDED entries (System V ABI, chapter 5)."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + index * size) for index in range(count)]
    for section in sections:
        if section[1] == 6:  # SHT_DYNAMIC
            strings = sections[section[6]][4]
            for offset in range(section[4], section[4] + section[5], 16):
                kind, value = struct.unpack_from("<QQ", data, offset)
                if kind == 1:  # DT_NEEDED
                    yield _string(data, strings + value)


def _needs_of_mach_o(data: bytes) -> Iterator[str]:
    """LC_LOAD_DYLIB and LC_LOAD_WEAK_DYLIB commands (mach-o/loader.h)."""
    (commands,) = struct.unpack_from("<I", data, 16)
    offset = 32
    for _ in range(commands):
        kind, size, name = struct.unpack_from("<III", data, offset)
        if kind in {0x0C, 0x80000018}:
            yield _string(data, offset + name)
        offset += size


def _needs_of_pe(data: bytes, header: int) -> Iterator[str]:
    """Names in the import directory (PE format, the .idata section)."""
    sections, optional_size = struct.unpack_from("<H12xH", data, header + 6)
    optional = header + 24
    (imports,) = struct.unpack_from("<I", data, optional + 120)
    places = [struct.unpack_from("<IIII", data, optional + optional_size + 40 * index + 8) for index in range(sections)]

    def position(address: int) -> int:
        found: int = next(
            raw + address - virtual for size, virtual, _, raw in places if virtual <= address < virtual + size
        )
        return found

    offset = position(imports) if imports else len(data)
    while offset < len(data) and (name := struct.unpack_from("<I", data, offset + 12)[0]):
        yield _string(data, position(name))
        offset += 20


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()
