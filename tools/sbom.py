# /// script
# requires-python = ">=3.11"
# dependencies = ["cyclonedx-python-lib[json-validation]>=11", "packaging>=24"]
# ///
"""Write a bill of materials, CycloneDX 1.6, beside each wheel: what it is, what is inside, and what it needs.

All of it is read from the wheel, so the same wheel has the same bill. It lies beside the wheel and not in it (PEP 770):
a file cannot hold the hash of the archive that holds it, and everything else of a pure wheel is in its METADATA.

- The wheel itself: name, version, purl, licence, SHA-256 and SHA-512.
- What its metadata requires, by name and range, extras marked as optional. Which versions that becomes is decided where
  it is installed, so no versions are claimed.
- A native library: its own hash, the libraries of the system that it loads, and what of other projects was linked into
  it. Built from this repository's sources without a standard library, it holds only those on Linux and macOS; on
  Windows the linker adds the start-up code of mingw-w64 and functions of compiler-rt, as Zig carries them.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import uuid
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cyclonedx.exception import CycloneDxException
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from check_library import Library, read_library

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

VERSION = SchemaVersion.V1_6
SUFFIX = ".cdx.json"
LIBRARIES = (".so", ".dylib", ".dll", ".pyd")
PREFIX = "inference-pio"
"""Of the names of our properties."""

_LINKED_INTO_PE = (
    ("mingw-w64", "start-up code", b"Mingw-w64 runtime failure", "ZPL-2.1"),
    ("compiler-rt", "functions that the processor lacks an instruction for", b"Mingw-w64 runtime failure", "MIT"),
)
"""What Zig links into every library for Windows: name, what of it, bytes that show it, licence."""


class SbomError(Exception):
    """A file that is no wheel, or a wheel that does not say what it is; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """What of a wheel goes into its bill.

    Attributes:
        name: File name.
        data: All of its bytes.
        metadata: Its METADATA.
        libraries: Native libraries in it, by path.
        time: When it was made, as it says itself.
    """

    name: str
    data: bytes
    metadata: Message
    libraries: dict[str, bytes]
    time: datetime


def main() -> None:
    """Write the bills; print their paths."""
    parser = argparse.ArgumentParser(description="Write a CycloneDX bill of materials beside each wheel.")
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL", help="wheels to describe")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the bills (default: that of the wheel)")
    arguments = parser.parse_args()
    for path in arguments.wheels:
        try:
            text = bill_of(read_wheel(path))
        except SbomError as error:
            sys.exit(f"sbom: {error}")
        bill = (arguments.out or path.parent) / f"{path.name}{SUFFIX}"
        bill.parent.mkdir(parents=True, exist_ok=True)
        bill.write_text(text, encoding="utf-8")
        print(bill)


def read_wheel(path: Path) -> Wheel:
    """Read the wheel at ``path``.

    Raises:
        SbomError: It is none, or its name and its metadata disagree.
    """
    try:
        name, version, *_ = parse_wheel_filename(path.name)
        data = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            items = archive.infolist()
            [place] = [item.filename for item in items if PurePosixPath(item.filename).match("*.dist-info/METADATA")]
            metadata = HeaderParser().parsestr(archive.read(place).decode("utf-8"))
            libraries = {item.filename: archive.read(item) for item in items if item.filename.endswith(LIBRARIES)}
    except (InvalidWheelFilename, OSError, zipfile.BadZipFile, ValueError) as error:
        raise SbomError(f"{path}: not a wheel: {error}") from error
    said = canonicalize_name(metadata.get("Name", "")), metadata.get("Version")
    if said != (name, str(version)):
        raise SbomError(f"{path}: its metadata is of {said[0]} {said[1]}")
    time = datetime(*max(item.date_time for item in items), tzinfo=UTC)
    return Wheel(name=path.name, data=data, metadata=metadata, libraries=libraries, time=time)


def bill_of(wheel: Wheel) -> str:
    """The bill as JSON, which its schema allows.

    Raises:
        SbomError: Metadata that cannot be expressed.
    """
    try:
        bom = Bom(
            serial_number=uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(wheel.data).hexdigest()),
            metadata=BomMetaData(component=_itself(wheel), timestamp=wheel.time),
        )
        root = bom.metadata.component
        assert root is not None
        needed, inside = [*_required(wheel)], [*_native(wheel)]
        for component in (*needed, *inside):
            bom.components.add(component)
            bom.register_dependency(component)
        bom.register_dependency(root, [*needed, *inside])
        text = make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=2)
    except (CycloneDxException, InvalidRequirement, ValueError) as error:
        raise SbomError(f"{wheel.name}: {error}") from error
    if problem := JsonStrictValidator(VERSION).validate_str(text):
        raise SbomError(f"{wheel.name}: the bill does not follow its schema: {problem}")
    return f"{text}\n"


def _itself(wheel: Wheel) -> Component:
    name, version = canonicalize_name(wheel.metadata["Name"]), wheel.metadata["Version"]
    licence = wheel.metadata.get("License-Expression")
    if licence is None:
        raise ValueError("its metadata has no License-Expression")
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref=wheel.name,
        name=name,
        version=version,
        description=wheel.metadata.get("Summary"),
        licenses=[LicenseExpression(licence)],
        purl=PackageURL("pypi", None, name, version, {"file_name": wheel.name}),
        hashes=_hashes(wheel.data),
    )


def _required(wheel: Wheel) -> Iterator[Component]:
    """One component a distribution, with every requirement that names it."""
    named: dict[str, list[Requirement]] = {}
    for text in wheel.metadata.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        named.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for name, requirements in sorted(named.items()):
        optional = all("extra ==" in str(entry.marker) for entry in requirements)
        yield Component(
            type=ComponentType.LIBRARY,
            bom_ref=f"needs {name}",
            name=name,
            purl=PackageURL("pypi", None, name),
            scope=ComponentScope.OPTIONAL if optional else ComponentScope.REQUIRED,
            properties=[Property(name=f"{PREFIX}:requirement", value=str(entry)) for entry in requirements],
        )


def _native(wheel: Wheel) -> Iterator[Component]:
    for path, data in sorted(wheel.libraries.items()):
        try:
            library = read_library(data)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is no library that can be read: {error}") from error
        needs = [Property(name=f"{PREFIX}:loads", value=name) for name in library.needs]
        kind = Property(name=f"{PREFIX}:format", value=f"{library.form} {library.processor}")
        yield Component(
            type=ComponentType.FILE,
            bom_ref=path,
            name=path,
            hashes=_hashes(data),
            properties=[kind, *needs],
            components=list(_linked(path, data, library)),
        )


def _linked(path: str, data: bytes, library: Library) -> Iterator[Component]:
    for name, what, sign, licence in _LINKED_INTO_PE:
        if library.form == "PE" and sign in data:
            yield Component(
                type=ComponentType.LIBRARY,
                bom_ref=f"{path} {name}",
                name=name,
                description=f"Linked in by the compiler: {what}",
                licenses=[LicenseExpression(licence)],
            )


def _hashes(data: bytes) -> list[HashType]:
    return [
        HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(data).hexdigest()),
        HashType(alg=HashAlgorithm.SHA_512, content=hashlib.sha512(data).hexdigest()),
    ]


if __name__ == "__main__":
    main()
