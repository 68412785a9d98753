"""How large the distributions of the environment that runs this are, and which of them are there for one of them alone.

Runs inside the environment under test, so it needs nothing but Python.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?", re.DOTALL)
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def sizes() -> dict[str, int]:
    """Bytes of each distribution by canonical name, as its record lists its files; compiled code does not count."""
    return {canonical(found.name): _installed_bytes(found) for found in distributions()}


def brought_only_by(name: str, roots: Iterable[str]) -> set[str]:
    """Canonical names of what is installed and what ``roots`` would do without if nothing needed ``name``.

    Requirements for another platform do not count, because what they name is not installed. Empty if ``name`` is not.
    """
    installed = {canonical(found.name): found for found in distributions()}
    if name not in installed:
        return set()
    waiting = [(canonical(root), "") for root in roots]
    kept: set[tuple[str, str]] = set()
    while waiting:
        place = waiting.pop()
        if place in kept or place[0] == name or place[0] not in installed:
            continue
        kept.add(place)
        waiting += _required(installed[place[0]], place[1])
    return installed.keys() - {found for found, _ in kept}


def canonical(name: str) -> str:
    """The name in the one spelling that is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _required(found: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    """What ``found`` needs, or what its ``extra`` adds: names, each with every extra that is asked for, and without."""
    for text in found.requires or ():
        matched = _REQUIREMENT.fullmatch(text)
        if matched is None:
            raise ValueError(f"{found.name} requires {text!r}, which is no requirement")
        wanted = {canonical(each) for each in _EXTRA.findall(matched[3] or "")}
        if (canonical(extra) in wanted) if wanted else not extra:
            asked = [each.strip() for each in (matched[2] or "").split(",")]
            yield from ((canonical(matched[1]), canonical(each)) for each in {"", *asked})


def _installed_bytes(found: Distribution) -> int:
    paths = (Path(str(file.locate())) for file in found.files or () if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file())
