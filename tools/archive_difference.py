"""In what two archives that should be the same differ: members, their order, attributes and contents."""

from __future__ import annotations

import difflib
import gzip
import io
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MOST_LINES = 8
"""Lines that are shown of what differs in one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of an archive.

    Attributes:
        attributes: All that is stored beside the contents, by name, for people.
        contents: Its bytes; empty for folders.
    """

    attributes: Mapping[str, str]
    contents: bytes


def differences(first: Path, second: Path) -> list[str]:
    """One line for all that differs between two wheels or two ``.tar.gz`` files; empty when their bytes are the same.

    Raises:
        ValueError: A file that is neither, or two of different kinds.
        zipfile.BadZipFile: A wheel that is damaged.
        tarfile.TarError: A source distribution that is damaged.
    """
    if first.read_bytes() == second.read_bytes():
        return []
    ours, theirs = read_archive(first), read_archive(second)
    found = list(_of_names(ours, theirs))
    for name in sorted(ours.keys() & theirs.keys()):
        found += _of_entries(name, ours[name], theirs[name])
    if not found:
        found.append("the same members, in archives that are packed in different ways")
    return found


def read_archive(path: Path) -> dict[str, Entry]:
    """All members of a wheel or of a ``.tar.gz`` file, in the order in which they stand there.

    Raises:
        ValueError: Another kind of file.
        zipfile.BadZipFile: A wheel that is damaged.
        tarfile.TarError: A source distribution that is damaged.
    """
    if path.name.endswith(".whl"):
        return dict(_of_zip(path))
    if path.name.endswith(".tar.gz"):
        return dict(_of_tar(path))
    message = f"{path.name} is neither a wheel nor a .tar.gz file"
    raise ValueError(message)


def _of_zip(path: Path) -> Iterator[tuple[str, Entry]]:
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            attributes = {
                "time": "{}-{:02}-{:02} {:02}:{:02}:{:02}".format(*item.date_time),
                "mode": oct(item.external_attr >> 16),
                "compression": str(item.compress_type),
                "made on": str(item.create_system),
            }
            yield item.filename, Entry(attributes=attributes, contents=archive.read(item))


def _of_tar(path: Path) -> Iterator[tuple[str, Entry]]:
    packed = path.read_bytes()
    (time,) = struct.unpack_from("<I", packed, 4)
    yield "(gzip)", Entry(attributes={"time": _time(time), "flags": bin(packed[3])}, contents=b"")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as archive:
        for item in archive:
            attributes = {
                "time": _time(item.mtime),
                "mode": oct(item.mode),
                "kind": item.type.decode("ascii", "replace"),
                "link": item.linkname,
                "owner": f"{item.uid}:{item.gid} {item.uname}:{item.gname}",
            }
            file = archive.extractfile(item) if item.isfile() else None
            yield item.name, Entry(attributes=attributes, contents=file.read() if file else b"")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _of_names(ours: Mapping[str, Entry], theirs: Mapping[str, Entry]) -> Iterator[str]:
    for name in sorted(ours.keys() - theirs.keys()):
        yield f"{name}: only in the first"
    for name in sorted(theirs.keys() - ours.keys()):
        yield f"{name}: only in the second"
    common = [name for name in ours if name in theirs]
    others = [name for name in theirs if name in ours]
    for one, other in zip(common, others, strict=True):
        if one != other:
            yield f"another order: {one} stands where the second has {other}"
            return


def _of_entries(name: str, ours: Entry, theirs: Entry) -> Iterator[str]:
    for attribute, value in ours.attributes.items():
        if value != theirs.attributes[attribute]:
            yield f"{name}: {attribute} is {value} in the first, {theirs.attributes[attribute]} in the second"
    if ours.contents != theirs.contents:
        yield from (f"{name}: {line}" for line in _of_contents(ours.contents, theirs.contents))


def _of_contents(ours: bytes, theirs: bytes) -> Iterator[str]:
    """Lines that differ of two texts; of anything else, sizes and the first byte that differs with what follows it."""
    try:
        texts = ours.decode("utf-8"), theirs.decode("utf-8")
    except UnicodeDecodeError:
        texts = None
    if texts is None or "\0" in "".join(texts):
        place = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(map(len, (ours, theirs)))
        )
        pieces = " and ".join(repr(data[place : place + 24]) for data in (ours, theirs))
        yield f"{len(ours)} and {len(theirs)} bytes, which differ from byte {place}: {pieces}"
        return
    lines = list(difflib.unified_diff(texts[0].splitlines(), texts[1].splitlines(), lineterm="", n=0))[2:]
    changed = [line for line in lines if not line.startswith("@@")]
    yield from changed[:MOST_LINES] or ["line endings differ"]
    if len(changed) > MOST_LINES:
        yield f"and {len(changed) - MOST_LINES} more lines"
