"""The structures of program.h as Python lays them out, against what the compiler makes of them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from inference_pio.kernels._abi import STRUCTURES
from inference_pio.kernels._library import load_library
from inference_pio.kernels._tiles import LAYOUT_VERSION, MINIMUM_STEPS, TILE_INPUTS, TILE_ROWS, TileFormat

NATIVE = Path(__file__).parents[1] / "native"


@pytest.fixture(scope="session")
def compiled_layouts(tmp_path_factory):
    """Size and offsets of every structure, printed by a compiled program."""
    pytest.importorskip("ziglang", reason="a compiler that lays structures out")
    lines = []
    for name, structure in STRUCTURES.items():
        lines.append(f'std::printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in structure._fields_:
            lines.append(f'std::printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
    folder = tmp_path_factory.mktemp("abi")
    source = folder / "layouts.cpp"
    main = "\n".join(lines)
    source.write_text(f'#include <cstddef>\n#include <cstdio>\n#include "program.h"\nint main() {{\n{main}\n}}\n')
    command = [sys.executable, "-m", "ziglang", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", f"-I{NATIVE}"]
    subprocess.run([*command, "-w", str(source), "-o", str(folder / "layouts")], check=True, capture_output=True)
    printed = subprocess.run([str(folder / "layouts")], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in printed.splitlines())


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_is_laid_out_as_in_c(name, compiled_layouts):
    """Every field is where the native code looks for it, and none is missing at the end."""
    structure = STRUCTURES[name]
    assert ctypes.sizeof(structure) == int(compiled_layouts[name])
    for field, _ in structure._fields_:
        assert getattr(structure, field).offset == int(compiled_layouts[f"{name}.{field}"]), field


def test_header_has_no_other_structures():
    """A structure added to program.h needs a twin."""
    header = (NATIVE / "program.h").read_text(encoding="utf-8")
    named = {line.split()[1] for line in header.splitlines() if line.startswith("struct ") and line.endswith("{")}
    assert named == set(STRUCTURES)


def test_strips_are_as_large_as_in_c():
    """Python's figures for tiles and strips are the library's."""
    header = (NATIVE / "program.h").read_text(encoding="utf-8")
    assert f"kTileRows = {TILE_ROWS};" in header
    assert f"kTileInputs = {TILE_INPUTS};" in header
    assert f"kMinimumSteps = {MINIMUM_STEPS};" in header
    assert LAYOUT_VERSION >= 1
    for tile_format in TileFormat:
        for columns in (1, 32, 33, 576):
            expected = tile_format.strip_bytes(columns)
            assert load_library().pio_strip_bytes(int(tile_format), columns) == expected, tile_format
