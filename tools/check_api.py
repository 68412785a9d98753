# /// script
# requires-python = ">=3.11"
# dependencies = ["griffe>=2.4", "packaging>=24"]
# ///
"""Check that what a release breaks is announced: the public API of each distribution against its last release.

The last release is the highest tag ``NAME-vVERSION``, or, with ``--index``, the highest version there. A change that
may break somebody is fine where the next version says so, which fragments of the kind ``changed`` or ``removed`` make
it do, or where ``api-waivers.toml`` of the distribution holds it to be none, with a reason::

    [[waiver]]
    change = "inference_pio.cache.PagePool.take(count): parameter default was changed: 1 -> 2"
    reason = "Nobody could leave it out: ..."

A waiver that nothing needs any more is an error, too.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.version import Version

from api_changes import breaking_changes
from published import fetch_published
from release_fragments import bump_of, bumped, read_fragments
from release_git import released_versions, tag_name
from release_refusal import RefusedError
from workspace import ROOT, Member, read_members

WAIVERS = "api-waivers.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found of one distribution.

    Attributes:
        name: Its name.
        released: The version that was compared with; None before a first release.
        next: The version that comes next, as versions and fragments of the tree say.
        breaking: Whether the step from the one to the other says that something breaks.
        changes: What may break somebody, those with a waiver left out.
        waived: Changes with a waiver, and its reason.
        problems: What is wrong; one line each.
    """

    name: str
    released: str | None
    next: str
    breaking: bool
    changes: list[str]
    waived: dict[str, str]
    problems: list[str]


def main() -> None:
    """Print a line a distribution and what breaks; exit with 1 if something does that nobody announced."""
    parser = argparse.ArgumentParser(description="Check the public API of distributions against their last release.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="distributions (default: all)")
    parser.add_argument("--index", metavar="URL", help="compare with what this index has, not with tags")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    members = read_members(root)
    if unknown := sorted(set(arguments.names) - members.keys()):
        parser.error(f"no distribution is called {', '.join(unknown)}; there are {', '.join(members)}")
    try:
        reports = [check(root, members[name], arguments.index) for name in arguments.names or members]
    except RefusedError as error:
        sys.exit(f"check_api: {error}")
    print(json.dumps([asdict(report) for report in reports]) if arguments.json else "\n".join(map(render, reports)))
    if any(report.problems for report in reports):
        sys.exit(1)


def check(root: Path, member: Member, index: str | None) -> Report:
    """Compare ``member`` with its last release.

    Raises:
        RefusedError: Waivers that cannot be read, a tag that is none, an index that does not answer.
    """
    waivers = read_waivers(member)
    kinds = [fragment.kind for fragment in read_fragments(member)]
    with tempfile.TemporaryDirectory(prefix="pio-api-") as scratch:
        released = last_release(root, member, index, Path(scratch))
        [leaf] = member.leaves
        found = [] if released is None else breaking_changes(leaf, Path(scratch), member.folder / "src")
    is_prepared = not kinds and member.version != released
    upcoming = member.version if is_prepared else bumped(member.version, bump_of(member, kinds))
    breaking = released is not None and is_breaking(released, upcoming)
    path = f"{member.folder.relative_to(root).as_posix()}/{WAIVERS}"
    problems = [
        f"{path}: nothing needs the waiver of {change!r}; remove it" for change in waivers if change not in found
    ]
    changes = [change for change in found if change not in waivers]
    if not breaking:
        way_out = (
            f"{upcoming} would come after {released}; add a `changed` or `removed` fragment, or a waiver in {path}"
        )
        problems += [f"{change}: {way_out}" for change in changes]
    return Report(
        name=member.name,
        released=released,
        next=upcoming,
        breaking=breaking,
        changes=changes,
        waived={change: reason for change, reason in waivers.items() if change in found},
        problems=problems,
    )


def read_waivers(member: Member) -> dict[str, str]:
    """Changes that somebody has looked at and holds to break nobody, each with the reason.

    Raises:
        RefusedError: Not TOML, or not tables ``[[waiver]]`` of a change and a reason.
    """
    path = member.folder / WAIVERS
    if not path.is_file():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(f"{path}: {error}") from error
    listed = document.get("waiver")
    if document.keys() != {"waiver"} or not isinstance(listed, list):
        raise RefusedError(f"{path}: has {', '.join(document) or 'nothing'}; it may hold tables [[waiver]] alone")
    found: dict[str, str] = {}
    for entry in listed:
        if set(entry) != {"change", "reason"} or not all(isinstance(v, str) and v.strip() for v in entry.values()):
            raise RefusedError(f"{path}: a waiver is a change and a reason, not {entry}")
        if entry["change"] in found:
            raise RefusedError(f"{path}: two waivers of {entry['change']!r}")
        found[entry["change"]] = entry["reason"]
    return found


def last_release(root: Path, member: Member, index: str | None, folder: Path) -> str | None:
    """Lay the source of the last release into ``folder``; returns its version, or None if there was none.

    Raises:
        RefusedError: A tag without the distribution, an index that does not answer.
    """
    if index is not None:
        return fetch_published(index, member.name, folder)
    versions = [version for version in released_versions(root, member.name) if not version.is_prerelease]
    if not versions:
        return None
    tag = tag_name(member.name, versions[-1])
    source = member.folder.relative_to(root) / "src"
    command = ["git", "archive", "--format=tar", f"{tag}:{source.as_posix()}"]
    done = subprocess.run(command, cwd=root, capture_output=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"{tag}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return str(versions[-1])


def is_breaking(released: str, upcoming: str) -> bool:
    """Whether bounds of one minor (of one major, from 1.0 on) that admit ``released`` exclude ``upcoming``."""
    old, new = Version(released), Version(upcoming)
    if old.major or new.major:
        return new.major > old.major
    return new.minor > old.minor


def render(report: Report) -> str:
    """The report for people."""
    if report.released is None:
        return "\n".join([f"{report.name}: no release yet, so nothing to compare", *_lines("problem", report.problems)])
    kind = "announced as breaking" if report.breaking else "not announced as breaking"
    head = (
        f"{report.name}: {report.released} -> {report.next}, {kind}: {len(report.changes)} changes may break somebody"
    )
    changes = report.changes if report.breaking else []
    waived = [f"{change} ({reason})" for change, reason in report.waived.items()]
    lines = [*_lines("breaks", changes), *_lines("waived", waived), *_lines("problem", report.problems)]
    return "\n".join([head, *lines])


def _lines(label: str, texts: list[str]) -> list[str]:
    return [f"    {label}: {text}" for text in texts]


if __name__ == "__main__":
    main()
