"""Turn what waits into releases of the tree: versions, changelogs and bounds. Nothing is built or sent."""

from __future__ import annotations

import subprocess
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from distribution_table import refresh
from release_api import lowest_with_used_names
from release_bounds import Bound, Raise, read_bounds, write_raise
from release_fragments import fragment_id, read_fragments
from release_git import git, refuse_changes, released_versions, tag_name
from release_names import canonical_names
from release_plan import Step, make_plan
from release_refusal import RefusedError
from rules_layout import is_released
from workspace import Member, read_members, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_TOWNCRIER = "towncrier>=25.8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What ``prepare`` does, or would do.

    Attributes:
        steps: The releases, in dependency order.
        raises: Bounds to raise, in these distributions and in others.
        left: Distributions whose published bounds are raised, and which are not part of this: they get a fragment, so
            that the next plan has them.
    """

    steps: list[Step]
    raises: list[Raise]
    left: list[str]


def make_preparation(root: Path, names: Iterable[str]) -> Preparation:
    """What preparing the distributions ``names`` comes to; all that the plan has if there are none.

    Bounds are raised where the tree's new version is outside, and where a name that the floor does not have is used
    (:mod:`release_api`); nowhere else.

    Raises:
        RefusedError: A name that is unknown or has nothing to release, a dependency cycle, a tag that exists already,
            or a use of what no release has.
    """
    members = read_members(root)
    steps = _chosen(make_plan(members), list(names), members)
    taken = [tag_name(step.name, step.next) for step in steps if _released_as(root, step)]
    if taken:
        raise RefusedError(*(f"tag {tag} exists already: raise the version in pyproject.toml past it" for tag in taken))
    versions = {step.name: step.next for step in steps}
    raises = [
        Raise(bound=bound, text=bound.raised_to(step.next), why=f"excludes {step.next}")
        for step in steps
        for bound in step.excluded_by
    ]
    raises += _raised_for_names(root, members, versions, {raised.bound for raised in raises})
    left = sorted({raised.bound.dependent for raised in raises if raised.bound.published} - versions.keys())
    return Preparation(steps=steps, raises=sorted(raises), left=left)


def prepare(root: Path, preparation: Preparation, date: str) -> None:
    """Write ``preparation`` into the tree: bounds, fragments about them, versions, changelogs of ``date``, the table.

    Fragments that went into a changelog are removed; git has all of it staged or changed, and nothing is committed.

    Raises:
        RefusedError: Something in the distributions concerned is not committed, or a program failed.
    """
    members = read_members(root)
    touched = {step.name for step in preparation.steps} | {raised.bound.dependent for raised in preparation.raises}
    refuse_changes(root, [members[name].folder for name in sorted(touched)])
    for raised in preparation.raises:
        write_raise(members[raised.bound.dependent], raised)
    for name in sorted(touched):
        _write_fragments(members[name], preparation.raises)
    for step in preparation.steps:
        if step.bump != "first":
            _call(root, "uv", "--quiet", "version", "--package", step.name, "--bump", step.bump, "--frozen")
        if (written := read_members(root)[step.name].version) != step.next:
            raise RefusedError(f"{step.name}: uv wrote version {written}, not {step.next}")
        _write_changelog(root, members[step.name], step.next, date)
    paths = [*(members[name].folder for name in sorted(touched)), *refresh(root)]
    git(root, "add", "--all", "--", *(path.relative_to(root).as_posix() for path in paths))


def _released_as(root: Path, step: Step) -> bool:
    """Whether the version of ``step`` has a tag already."""
    return step.next in map(str, released_versions(root, step.name))


def _chosen(plan: list[Step], names: list[str], members: Mapping[str, Member]) -> list[Step]:
    wanted = canonical_names(members, names)
    if idle := sorted(wanted - {step.name for step in plan}):
        raise RefusedError(*(f"{name} has nothing to release: no fragment waits in its changelog.d/" for name in idle))
    return [step for step in plan if not wanted or step.name in wanted]


def _raised_for_names(
    root: Path, members: Mapping[str, Member], versions: Mapping[str, str], raised: set[Bound]
) -> Iterable[Raise]:
    """Bounds whose floor lacks a name that is used: those of what is released, and those on what is."""
    for bound in read_bounds(members):
        if bound in raised or not bound.published or bound.target == bound.dependent:
            continue
        if bound.dependent not in versions and bound.target not in versions:
            continue
        upcoming = versions.get(bound.target) or _untagged(root, members[bound.target])
        if floor := lowest_with_used_names(root, bound, members, upcoming):
            yield Raise(bound=bound, text=bound.raised_to(floor), why=f"uses what {floor} brought")


def _untagged(root: Path, member: Member) -> str | None:
    """The version of ``member`` that is prepared, and not out yet."""
    pending = not is_released(member) or read_fragments(member)
    out = member.version in map(str, released_versions(root, member.name))
    return None if pending or out else member.version


def _write_fragments(member: Member, raises: Iterable[Raise]) -> None:
    """A line for the changelog about each published bound of ``member`` that is raised."""
    name = canonicalize_name(member.name)
    texts = {
        raised.text.partition(";")[0].strip()
        for raised in raises
        if raised.bound.dependent == name and raised.bound.published and raised.bound.target != name
    }
    for text in sorted(texts):
        path = member.folder / "changelog.d" / f"needs-{fragment_id(text)}.dependencies.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"Needs `{text}`.\n", encoding="utf-8")


def _write_changelog(root: Path, member: Member, version: str, date: str) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    newest = table(document, "tool", "uv").get("exclude-newer")
    pinned = ["--exclude-newer", str(newest)] if newest else []
    configured = ["--config", str(root / "pyproject.toml"), "--dir", str(member.folder)]
    release = ["--version", version, "--date", date, "--yes"]
    _call(root, "uv", "tool", "run", *pinned, "--from", _TOWNCRIER, "towncrier", "build", *configured, *release)


def _call(root: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        way_out = "`git restore --staged --worktree packages models` takes everything back"
        raise RefusedError(f"{' '.join(command[:3])}: exit code {done.returncode}: {said}: {way_out}")
