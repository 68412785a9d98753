"""Native libraries in wheels are for the platform that the wheel's name says, and need only the system's own."""

import struct
import zipfile

import pytest

from check_library import check_library, check_library_wheel, read_library


def elf(machine=62, needs=("libc.so.6",)):
    """An ELF library of nothing but a dynamic section and its strings."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    offsets = [strings.index(name.encode()) for name in needs]
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in offsets) + struct.pack("<QQ", 0, 0)
    sections = [(3, 64, len(strings), 0), (6, 64 + len(strings), len(dynamic), 0)]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, start, size, link, 0, 0, 0) for kind, start, size, link in sections
    )
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<Q", header, 0x28, 64 + len(strings) + len(dynamic))
    struct.pack_into("<HH", header, 0x3A, 64, 2)
    return bytes(header) + strings + dynamic + table


def wheel(folder, name, files):
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in files.items():
            archive.writestr(inside, data)
    return path


def test_a_library_for_its_platform_has_no_problems(tmp_path):
    """The tag, the form, the processor and what it needs agree."""
    path = wheel(tmp_path, "x-1-py3-none-manylinux_2_28_aarch64.whl", {"x.so": elf(183, ("libc.so.6", "libm.so.6"))})
    assert check_library_wheel(path) == []
    assert read_library(elf(183)).processor == "aarch64"


def test_another_platform_is_a_problem():
    """By form and by processor."""
    assert check_library(elf(62), "manylinux_2_28_aarch64") == [
        "is ELF for x86_64, and manylinux_2_28_aarch64 wants ELF for aarch64"
    ]
    assert check_library(elf(62), "win_amd64") == ["is ELF for x86_64, and win_amd64 wants PE for x86_64"]


def test_a_stranger_is_a_problem():
    """Libraries that a machine may lack."""
    problems = check_library(elf(62, ("libc.so.6", "libstdc++.so.6")), "manylinux_2_28_x86_64")
    assert problems == ["needs libstdc++.so.6, which is not the system's"]


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh", elf()[:40], elf(machine=3)])
def test_what_is_no_library_is_a_problem(data):
    """Empty, a script, cut off, or for another processor."""
    assert "no library that can be read" in check_library(data, "manylinux_2_28_x86_64")[0]


def test_wheels_hold_one_small_library(tmp_path):
    """None, two, or one that has grown beyond reason."""
    name = "x-1-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert check_library_wheel(wheel(tmp_path, name, {"x.py": ""})) == [
        "is tagged cp311-cp311, not py3-none",
        "holds 0 libraries: none",
    ]
    name = "x-1-py3-none-manylinux_2_28_x86_64.whl"
    assert check_library_wheel(wheel(tmp_path, name, {"x.so": "", "y.dll": ""})) == ["holds 2 libraries: x.so, y.dll"]
    [problem] = check_library_wheel(wheel(tmp_path, name, {"x.so": elf() + bytes(2**20)}))
    assert problem.endswith("more than 1048576")
