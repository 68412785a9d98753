# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Write ``docs/distributions.md``: what each distribution is for, what it needs, and what it costs.

Everything but the costs comes from the ``pyproject.toml`` files. The costs are those of ``docs/distributions.json``,
which ``nox -s measure`` writes, with the day and the machine; the limits beside them are held by ``nox -s tests``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from release_order import dependency_order
from workspace import ROOT, Member, read_members, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from packaging.requirements import Requirement

PAGE = Path("docs/distributions.md")
MEASURED = Path("docs/distributions.json")
WAY_OUT = "run `uv run --only-group dev python tools/distribution_table.py`"

_COSTS = """\
MB are 10^6 bytes of all installed files, dependencies included, Python itself not. Torch is its build for CUDA with all
that it brings, which an index gives on Linux; its builds for CPUs are several times smaller. Modules are those that are
loaded after the package is imported in a fresh process, Python's own included; seconds are the processor time of the
import. The limits are `[tool.pio-workspace.light]` of each `pyproject.toml`; `uv run nox -s tests` holds them.
"""

_HEAD = """\
# Distributions

Each is installed, versioned and released alone, and brings only what is written here. Lowest first: none needs one that
stands below it.

<!-- Written by tools/distribution_table.py. -->
"""


def main() -> None:
    """Write the page, or check that it is what would be written."""
    parser = argparse.ArgumentParser(description="Write the table of distributions.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page would change")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    text = page(read_members(root), read_measured(root))
    written = root / PAGE
    if not arguments.check:
        written.write_text(text, encoding="utf-8")
    elif not written.is_file() or written.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE}: is not what the tree says: {WAY_OUT}")


def refresh(root: Path) -> list[Path]:
    """Write the page anew where the tree has one; returns what was written."""
    path = root / PAGE
    if not path.is_file():
        return []
    path.write_text(page(read_members(root), read_measured(root)), encoding="utf-8")
    return [path]


def read_measured(root: Path) -> Mapping[str, object]:
    """What was measured last; nothing if nobody did."""
    path = root / MEASURED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def page(members: Mapping[str, Member], measured: Mapping[str, object]) -> str:
    """The whole page."""
    order = [members[name] for name in dependency_order(members)]
    parts = [_HEAD, *_needs(order, members), "", "## What it costs", "", *_costs(order, measured)]
    return "\n".join(parts) + "\n"


def _needs(order: Iterable[Member], members: Mapping[str, Member]) -> Iterator[str]:
    yield "| distribution | version | what it is for | needs of these | needs of others | extras |"
    yield "|---|---|---|---|---|---|"
    for member in order:
        ours, others = _apart(member.dependencies, members)
        extras = ", ".join(f"`{extra}`" for extra in sorted(member.extras))
        description = str(table(member.document, "project").get("description", "")).replace("|", "\\|")
        yield f"| `{member.name}` | {member.version} | {description} | {ours} | {others} | {extras} |"


def _apart(requirements: Iterable[Requirement], members: Mapping[str, Member]) -> tuple[str, str]:
    """Names of what is of this workspace, and of what is not."""
    names = sorted({str(canonicalize_name(entry.name)) for entry in requirements})
    ours = [f"`{name.removeprefix('pio-')}`" for name in names if name in members]
    return ", ".join(ours), ", ".join(f"`{name}`" for name in names if name not in members)


def _costs(order: Iterable[Member], measured: Mapping[str, object]) -> Iterator[str]:
    figures = table(measured, "distributions")
    if figures:
        said = ", ".join(str(value) for value in table(measured, "machine").values())
        yield f"Measured on {measured['date']} ({said}) in environments of wheels alone, by `uv run nox -s measure`."
        yield ""
    yield _COSTS
    yield "| distribution | MB itself | MB without torch (limit) | MB with torch | modules (limit) | import, CPU s |"
    yield "|---|---|---|---|---|---|"
    for member in order:
        found = table(figures, str(canonicalize_name(member.name)))
        light, torch = member.light, found.get("bytes_with_torch")
        cells = [
            f"`{member.name}`",
            _megabytes(found.get("own_bytes")),
            f"{_megabytes(found.get('bytes_without_torch'))}{_limit(light.max_mb)}",
            _megabytes(torch) if torch else "",
            f"{found.get('modules', '')}{_limit(light.max_modules)}",
            f"{found['seconds']:.2f}" if "seconds" in found else "",
        ]
        yield f"| {' | '.join(cells)} |"


def _megabytes(size: object) -> str:
    if not isinstance(size, int):
        return ""
    digits = 2 if size < 10**6 else 1 if size < 10**7 else 0
    return f"{size / 10**6:,.{digits}f}"


def _limit(value: int | None) -> str:
    return "" if value is None else f" ({value})"


if __name__ == "__main__":
    main()
