"""Bring an index to what the tree says: every release that it lacks, in dependency order, and nothing twice.

Publishing is reconciliation: what is on the index already with the same bytes is done, what is missing is uploaded, and
everything that contradicts the manifest, the tree, the tags or the index is refused before the first upload. So a run
that was killed anywhere is completed by the next one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from release_bounds import read_bounds
from release_build import release_files
from release_fragments import read_fragments
from release_git import commit_of, content_of, git, tag_name, version_at
from release_index import Index, IndexFile, sha256_of, version_of
from release_manifest import Built, BuiltFile, Manifest, differing_files, read_manifest
from release_names import canonical_names
from release_order import dependency_order
from release_refusal import RefusedError
from rules_layout import is_released
from workspace import Member, read_members

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_SECONDS_TO_SHOW = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What one distribution still needs.

    Attributes:
        built: The distribution as it was checked.
        missing: Its files that the index lacks, in the order of upload; empty if it is complete.
    """

    built: Built
    missing: tuple[BuiltFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to.

    Attributes:
        index: The index, as it is read.
        upload: Address that takes uploads.
    """

    index: Index
    upload: str


def make_uploads(
    root: Path, folder: Path, index: Index, *, only: Iterable[str] = (), sha256: str | None = None
) -> list[Upload]:
    """What the index lacks of the manifest in ``folder``, in dependency order, all refusals done.

    Args:
        root: Root of the workspace, at the commit of the manifest or a later one that does not touch what it lists.
        folder: Where ``check`` put files and manifest.
        index: Where it is to go.
        only: Names to publish now; what they need of the manifest must be on the index then. All if there are none.
        sha256: Of the manifest, if it is known from elsewhere.

    Raises:
        RefusedError: For every reason at once: files that differ from the manifest; another version or content in the
            tree; versions that were never prepared; a dependency cycle; bounds that nothing satisfies; other bytes
            under the same name on the index; tags that name something else; releases of the tree that are neither
            there nor built.
    """
    members = read_members(root)
    order = dependency_order(members)
    manifest = read_manifest(folder, sha256)
    listed = {built.name: built for built in manifest.distributions}
    chosen = canonical_names(members, only)
    reasons = [f"{name} is not in {folder}: check it first" for name in sorted(chosen - listed.keys())]
    reasons += differing_files(folder, manifest)
    reasons += [reason for built in manifest.distributions for reason in _strayed(root, members, manifest, built)]
    if reasons:
        raise RefusedError(*reasons)
    held = {name: index.files(name) for name in order}
    reasons += [reason for built in manifest.distributions for reason in _contradicted(built, held[built.name])]
    reasons += [reason for name in order for reason in _mistagged(root, members[name], listed.get(name), manifest)]
    reasons += [reason for name in order for reason in _unbuilt(members[name], listed, set(held[name]))]
    there = {name: {version for file in files if (version := version_of(file))} for name, files in held.items()}
    pending = {name: {built.version} for name, built in listed.items() if not chosen or name in chosen}
    for bound in read_bounds(members):
        if bound.published and bound.dependent in pending and bound.target != bound.dependent:
            versions = {*map(str, there[bound.target]), *pending.get(bound.target, ())}
            if not any(bound.admits(version) for version in versions):
                has = f"there are {', '.join(sorted(versions))}" if versions else "there is none"
                what = f"{bound.dependent} ({bound.where}): nothing satisfies {bound.text}: {has}"
                reasons.append(f"{what}: publish {bound.target} first, or mend the bound")
    if reasons:
        raise RefusedError(*reasons)
    return [
        Upload(built=built, missing=tuple(file for file in built.files if file.name not in held[built.name]))
        for built in (listed[name] for name in order if name in pending)
    ]


def upload(folder: Path, uploads: Iterable[Upload], target: Target) -> None:
    """Send what is missing, one distribution after the other; each is on the index before the next begins.

    Raises:
        RefusedError: An upload failed, or the index does not show it afterwards. Running it again goes on from there.
    """
    for each in uploads:
        if not each.missing:
            continue
        archives = [folder / each.built.name / file.name for file in each.missing]
        attestations = [path.with_name(f"{path.name}.publish.attestation") for path in archives]
        files = [str(path) for path in (*archives, *attestations) if path.is_file()]
        command = ["uv", "publish", "--publish-url", target.upload, "--check-url", target.index.url, *files]
        done = subprocess.run(command, check=False, stdout=sys.stderr)
        if done.returncode:
            said = f"uv publish: exit code {done.returncode}"
            raise RefusedError(f"{each.built.name} {each.built.version}: {said}: run it again, it goes on from there")
        _await_files(each.built, target.index)


def tag(root: Path, folder: Path, index: Index, remote: str | None, *, dry_run: bool) -> list[str]:
    """Tag the manifest's commit for each of its releases that the index holds in full; returns the new tags.

    With ``remote``, push these tags there, the ones that were here already included.

    Raises:
        RefusedError: A tag that names something else, or a release that is not complete.
    """
    members, manifest = read_members(root), read_manifest(folder)
    reasons: list[str] = []
    for built in manifest.distributions:
        reasons += _mistagged(root, members[built.name], built, manifest)
        if {file.name for file in built.files} - index.files(built.name).keys():
            reasons.append(f"{built.name} {built.version} is not complete on {index.url}: publish it first")
    if reasons:
        raise RefusedError(*reasons)
    tags = [tag_name(built.name, built.version) for built in manifest.distributions]
    new = [name for name in tags if commit_of(root, f"refs/tags/{name}") is None]
    if not dry_run:
        for name in new:
            git(root, "tag", "--annotate", "--message", name.replace("-v", " "), name, manifest.commit)
        if remote is not None and tags:
            git(root, "push", remote, *(f"refs/tags/{name}" for name in tags))
    return new


def _strayed(root: Path, members: Mapping[str, Member], manifest: Manifest, built: Built) -> Iterator[str]:
    """Why the tree no longer stands for what was built."""
    what = f"{built.name} {built.version}"
    member = members.get(built.name)
    if member is None:
        yield f"{what}: the tree has no such distribution: check again"
    elif member.version != built.version:
        yield f"{what}: the tree has version {member.version}: check again"
    elif not is_released(member):
        yield f"{what}: its changelog has no entry for {built.version}: prepare it first"
    elif read_fragments(member):
        yield f"{what}: holds changes that its changelog does not: prepare it again, or publish the commit before them"
    elif commit_of(root, manifest.commit) is None:
        yield f"{what}: was built from {manifest.commit}, which this clone does not have: fetch it"
    elif content_of(root, manifest.commit, member.folder) != content_of(root, "HEAD", member.folder):
        yield f"{what}: was built from {manifest.commit[:12]}, and its folder has changed since: check again"
    elif sorted(file.name for file in built.files) != sorted(release_files(member)):
        yield f"{what}: a release has the files {', '.join(release_files(member))}: check again"


def _contradicted(built: Built, held: Mapping[str, IndexFile]) -> Iterator[str]:
    """Files of this version on the index that are not the ones that were checked."""
    wanted = {file.name: file for file in built.files}
    for name, file in held.items():
        if str(version_of(name)) != built.version:
            continue
        if name not in wanted:
            yield f"{built.name} {built.version}: the index has {name} of it, which was not checked: raise the version"
        elif (got := sha256_of(file)) != wanted[name].sha256:
            what = f"{name} is on the index with other bytes (sha256 {got}, checked {wanted[name].sha256})"
            yield f"{built.name} {built.version}: {what}: raise the version"


def _mistagged(root: Path, member: Member, built: Built | None, manifest: Manifest) -> Iterator[str]:
    """Why the tag of the tree's version, if there is one, is not this release's."""
    name = tag_name(member.name, member.version)
    tagged = commit_of(root, f"refs/tags/{name}")
    if tagged is None:
        return
    if version_at(root, tagged, member.folder) != member.version:
        yield f"tag {name} names {tagged[:12]}, where {member.name} has another version: delete the tag"
    elif built and content_of(root, tagged, member.folder) != content_of(root, manifest.commit, member.folder):
        what = f"tag {name} names {tagged[:12]}, and the release was built from {manifest.commit[:12]}"
        yield f"{what}, where {member.name} differs: raise the version, or delete the tag if nothing was published"


def _unbuilt(member: Member, listed: Mapping[str, Built], held: set[str]) -> Iterator[str]:
    """Why the tree's version would stay incomplete: it is prepared, not built, and not all on the index."""
    lacking = [file for file in release_files(member) if file not in held]
    if lacking and is_released(member) and not read_fragments(member) and member.name not in listed:
        some = f"lacks {', '.join(lacking)}" if len(lacking) < len(release_files(member)) else "does not have it"
        yield f"{member.name} {member.version} is prepared, and the index {some}: check it along"


def _await_files(built: Built, index: Index) -> None:
    """Wait until the index shows all files of ``built``: one that is cached may take a while."""
    end = time.monotonic() + _SECONDS_TO_SHOW
    while missing := sorted({file.name for file in built.files} - index.files(built.name).keys()):
        if time.monotonic() > end:
            what = f"uploaded, and {index.url} does not show {', '.join(missing)} after {_SECONDS_TO_SHOW} s"
            raise RefusedError(f"{built.name} {built.version}: {what}: run it again later")
        time.sleep(2)
