"""What sbom writes of wheels made by hand, held to the schema of CycloneDX 1.6."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib, which `nox -s tools` installs")

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from sbom import SbomError, bill_of, main, read_wheel

METADATA = """\
Metadata-Version: 2.4
Name: pio-top
Version: 0.1.0
Summary: On top.
License-Expression: Apache-2.0
Requires-Dist: numpy>=1.26
Requires-Dist: pio-base<0.2,>=0.1
Requires-Dist: Torch.Ch>=2.11; extra == 'torch'
Requires-Dist: colorama>=0.4; sys_platform == 'win32'
"""


def elf(*needs):
    """The headers of a 64-bit x86 library that loads ``needs``, as ``check_library`` reads them."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    offsets = [strings.index(b"\0" + name.encode()) + 1 for name in needs]
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in offsets)
    table = 64 + len(dynamic) + len(strings)
    header = struct.pack("<4s14xH20xQ10xHHHH", b"\x7fELF", 62, table, 64, 2, 1, 0)[:64].ljust(64, b"\0")
    header = bytearray(header)
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HH", header, 0x3A, 64, 2)
    sections = struct.pack("<IIQQQQIIQQ", 0, 6, 0, 0, 64, len(dynamic), 1, 0, 0, 0)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 64 + len(dynamic), len(strings), 0, 0, 0, 0)
    return bytes(header) + dynamic + strings + sections


@pytest.fixture
def wheel(tmp_path):
    """Makes a wheel; keywords are its metadata, its name and further files."""

    def make(metadata=METADATA, name="pio_top-0.1.0-py3-none-any.whl", **files):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for inside, contents in {"pio_top-0.1.0.dist-info/METADATA": metadata, **files}.items():
                archive.writestr(zipfile.ZipInfo(inside, (2026, 5, 6, 7, 8, 10)), contents)
        return path

    return make


def bill(path):
    text = bill_of(read_wheel(path))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


def test_the_wheel_itself(wheel):
    """Name, version, purl, licence, hashes; made when the wheel was, and the same every time."""
    path = wheel()
    found = bill(path)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    itself = found["metadata"]["component"]
    assert (itself["name"], itself["version"], itself["description"]) == ("pio-top", "0.1.0", "On top.")
    assert itself["purl"] == "pkg:pypi/pio-top@0.1.0?file_name=pio_top-0.1.0-py3-none-any.whl"
    assert itself["licenses"] == [{"expression": "Apache-2.0"}]
    assert {entry["alg"]: entry["content"] for entry in itself["hashes"]} == {
        "SHA-256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "SHA-512": hashlib.sha512(path.read_bytes()).hexdigest(),
    }
    assert found["metadata"]["timestamp"] == "2026-05-06T07:08:10+00:00"
    assert bill_of(read_wheel(path)) == bill_of(read_wheel(path))


def test_other_bytes_are_another_bill(wheel):
    """Its serial number is made from the wheel."""
    first = bill(wheel())["serialNumber"]
    assert bill(wheel(METADATA + "\nMore.\n"))["serialNumber"] != first


def test_what_it_needs(wheel):
    """By name and range, in the graph of dependencies; what only an extra needs is optional."""
    found = bill(wheel())
    needed = {entry["name"]: entry for entry in found["components"]}
    assert {name: entry["scope"] for name, entry in needed.items()} == {
        "colorama": "required",
        "numpy": "required",
        "pio-base": "required",
        "torch-ch": "optional",
    }
    assert needed["pio-base"]["purl"] == "pkg:pypi/pio-base"
    assert needed["pio-base"]["properties"] == [{"name": "inference-pio:requirement", "value": "pio-base<0.2,>=0.1"}]
    assert all("version" not in entry for entry in needed.values())
    graph = {entry["ref"]: entry.get("dependsOn", []) for entry in found["dependencies"]}
    assert graph["pio_top-0.1.0-py3-none-any.whl"] == [f"needs {name}" for name in sorted(needed)]


def test_a_native_library(wheel):
    """Its own hash, and what it loads; nothing of others is in it."""
    library = elf("libc.so.6", "libm.so.6")
    [found] = bill(wheel(METADATA.partition("Requires")[0], **{"inference_pio/top/libtop.so": library}))["components"]
    assert (found["type"], found["name"]) == ("file", "inference_pio/top/libtop.so")
    assert found["hashes"][0]["content"] == hashlib.sha256(library).hexdigest()
    assert [(entry["name"], entry["value"]) for entry in found["properties"]] == [
        ("inference-pio:format", "ELF x86_64"),
        ("inference-pio:loads", "libc.so.6"),
        ("inference-pio:loads", "libm.so.6"),
    ]
    assert "components" not in found


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": "pio_top.whl"}, r"pio_top\.whl: not a wheel: "),
        ({"name": "pio_top-0.2.0-py3-none-any.whl"}, r"its metadata is of pio-top 0\.1\.0"),
        ({"metadata": METADATA.replace("License-Expression: Apache-2.0\n", "")}, "has no License-Expression"),
        ({"metadata": METADATA.replace("numpy>=1.26", "numpy>>1")}, "numpy>>1"),
        ({"inference_pio/top/libtop.so": b"text"}, r"libtop\.so is no library that can be read: begins with b'text'"),
    ],
)  # fmt: skip
def test_what_cannot_be_described(wheel, changed, told):
    """No bill rather than one that leaves something out."""
    path = wheel(**changed)
    with pytest.raises(SbomError, match=told):
        bill_of(read_wheel(path))


def test_the_command(wheel, tmp_path, monkeypatch, capsys):
    """Bills beside the wheels, or in a folder; a line for what is no wheel."""
    path = wheel()
    monkeypatch.setattr("sys.argv", ["sbom", str(path)])
    main()
    assert capsys.readouterr().out == f"{path}.cdx.json\n"
    monkeypatch.setattr("sys.argv", ["sbom", "--out", str(tmp_path / "bills"), str(path)])
    main()
    assert (tmp_path / "bills" / f"{path.name}.cdx.json").read_bytes() == Path(f"{path}.cdx.json").read_bytes()
    monkeypatch.setattr("sys.argv", ["sbom", str(tmp_path / "x-1-py3-none-any.whl")])
    with pytest.raises(SystemExit, match=r"^sbom: .*x-1-py3-none-any\.whl: not a wheel: "):
        main()
