"""Rules about where things lie in a distribution, and what its ``pyproject.toml`` says of them."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from problem import Problem, Workspace
from workspace import NAMESPACE, Member, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FRAGMENT_TYPES = ("added", "changed", "dependencies", "fixed", "removed")
FRAGMENT = re.compile(rf"[^.]+\.({'|'.join(FRAGMENT_TYPES)})(?:\.\d+)?\.md")

_REQUIRED_FILES = ("README.md", "CHANGELOG.md", "LICENSE")
_WHEEL_PACKAGES = [f"src/{NAMESPACE}"]


def check_sources(workspace: Workspace) -> Iterator[Problem]:
    """The root names where every member comes from, and nobody else does: sources are never published."""
    path = workspace.root / "pyproject.toml"
    sources = {canonicalize_name(name) for name in table(workspace.document, "tool", "uv", "sources")}
    for name in sorted(workspace.members.keys() - sources):
        yield Problem(path, f"[tool.uv.sources] lacks {name}", f"add `{name} = {{ workspace = true }}`")
    for name in sorted(sources - workspace.members.keys()):
        yield Problem(path, f"[tool.uv.sources] names {name}, which is no member", "remove the line")
    for member in workspace.members.values():
        if "sources" in table(member.document, "tool", "uv"):
            yield Problem(member.folder / "pyproject.toml", "has its own [tool.uv.sources]", "the root's apply to all")


def check_leaves_apart(workspace: Workspace) -> Iterator[Problem]:
    """No two distributions bring the same portion: the later install would overwrite the earlier one."""
    owner: dict[str, str] = {}
    for member in workspace.members.values():
        for leaf in member.leaves:
            if leaf in owner:
                what = f"{leaf} is also brought by {owner[leaf]}"
                yield Problem(member.leaf_folder(leaf), what, "give one of them another name")
            owner.setdefault(leaf, member.name)


def check_namespace(member: Member, _: Workspace) -> Iterator[Problem]:
    """One typed portion per distribution, below a namespace that stays empty, and tests that are no package."""
    source = member.folder / "src"
    empty = [source, source / NAMESPACE, source / NAMESPACE / "models", *_folders_below(member.folder / "tests")]
    for folder in empty:
        if (folder / "__init__.py").exists():
            way_out = "remove it: a test folder is no package, and a namespace with this file hides its other portions"
            yield Problem(folder / "__init__.py", "stray __init__.py", way_out)
    for path in sorted(source.glob("*")) if source.is_dir() else ():
        if path.name not in {NAMESPACE, "__init__.py", "__pycache__"}:
            yield Problem(path, f"stands beside {NAMESPACE}/", f"move it below src/{NAMESPACE}/")
    namespaces = (source / NAMESPACE, source / NAMESPACE / "models")
    for path in (path for folder in namespaces for path in sorted(folder.glob("*"))):
        if path.is_file() and path.name != "__init__.py":
            yield Problem(path, "stands in the namespace itself", "move it into the distribution's own portion")
    if len(member.leaves) != 1:
        what = f"brings {len(member.leaves)} portions of {NAMESPACE}: {', '.join(member.leaves) or 'none'}"
        yield Problem(member.folder, what, "a distribution brings exactly one")
    for leaf in member.leaves:
        for name in ("__init__.py", "py.typed"):
            if not (member.leaf_folder(leaf) / name).is_file():
                yield Problem(
                    member.leaf_folder(leaf), f"lacks {name}", "every portion is an importable, typed package"
                )


def check_metadata(member: Member, workspace: Workspace) -> Iterator[Problem]:
    """The ``pyproject.toml`` says what all of them say: folder, licence, Python, version, build."""
    path = member.folder / "pyproject.toml"
    project = table(member.document, "project")
    if member.folder.name != member.name:
        yield Problem(path, f"name {member.name!r} is not the folder's", "folder, distribution and tag share one name")
    try:
        Version(member.version)
    except InvalidVersion:
        yield Problem(path, f"version {member.version!r} is not static", "write the version down")
    wanted = table(workspace.document, "project").get("requires-python")
    if project.get("requires-python") != wanted:
        got = project.get("requires-python")
        yield Problem(path, f"requires-python is {got!r}", f"the root says {wanted!r}")
    if project.get("license") != "Apache-2.0" or project.get("license-files") != ["LICENSE"]:
        way_out = '`license = "Apache-2.0"` and `license-files = ["LICENSE"]`'
        yield Problem(path, "licence is not declared as everywhere", way_out)
    wheel = table(member.document, "tool", "hatch", "build", "targets", "wheel")
    if wheel.get("packages") != _WHEEL_PACKAGES:
        yield Problem(path, "the wheel's packages are not the namespace", f"`packages = {_WHEEL_PACKAGES}`")


def check_files(member: Member, workspace: Workspace) -> Iterator[Problem]:
    """Each distribution stands alone: words, licence, changes, tests and benchmarks of its own."""
    for name in _REQUIRED_FILES:
        path = member.folder / name
        if not path.is_file() or not path.read_text(encoding="utf-8").strip():
            yield Problem(path, "missing or empty", "every distribution has one")
    licence = member.folder / "LICENSE"
    if licence.is_symlink():
        yield Problem(licence, "is a link, which a source distribution cannot hold", "copy the root's LICENSE")
    elif licence.is_file() and licence.read_bytes() != (workspace.root / "LICENSE").read_bytes():
        yield Problem(licence, "differs from the root's", "copy the root's LICENSE")
    if not any((member.folder / "tests").rglob("test_*.py")):
        yield Problem(member.folder / "tests", "no test_*.py", "every distribution tests itself")
    if not any((member.folder / "benchmarks").glob("bench_*.py")):
        yield Problem(member.folder / "benchmarks", "no bench_*.py", "every distribution measures itself")


def check_fragments(member: Member, _: Workspace) -> Iterator[Problem]:
    """Changes wait as fragments until a release writes them into the changelog."""
    folder = member.folder / "changelog.d"
    fragments = [path for path in sorted(folder.glob("*")) if path.name != ".gitignore"] if folder.is_dir() else []
    for path in fragments:
        if not FRAGMENT.fullmatch(path.name):
            yield Problem(path, "not named like a fragment", f"<id>.<{'|'.join(FRAGMENT_TYPES)}>.md")
        elif not path.read_text(encoding="utf-8").strip():
            yield Problem(path, "empty", "say in a line what changes for a user")
    if not is_released(member) and not fragments:
        what = f"no fragment, and CHANGELOG.md has no entry for {member.version}"
        yield Problem(folder, what, "add <id>.added.md with what this version brings")


def is_released(member: Member) -> bool:
    """Whether the changelog has an entry for the version that is declared: it is out, or about to be."""
    changelog = member.folder / "CHANGELOG.md"
    heading = rf"^## (?:.*\s)?{re.escape(member.version)}(?!\S)"
    return changelog.is_file() and bool(re.search(heading, changelog.read_text(encoding="utf-8"), re.MULTILINE))


def check_manifest(member: Member, _: Workspace) -> Iterator[Problem]:
    """A model's static manifest and its entry points say the same."""
    entry_points = table(member.document, "project", "entry-points", f"{NAMESPACE}.models")
    is_model = any(leaf.startswith(f"{NAMESPACE}.models.") for leaf in member.leaves)
    if not is_model and not entry_points:
        return
    path = member.leaf_folder(member.leaves[0]) / "pio-plugin.toml"
    if not path.is_file():
        yield Problem(path, "missing", "a model plugin has a manifest beside its __init__.py")
        return
    manifest = tomllib.loads(path.read_text(encoding="utf-8"))
    if manifest.get("distribution") != member.name:
        what = f"distribution is {manifest.get('distribution')!r}"
        yield Problem(path, what, f"the manifest is in {member.name!r}")
    if manifest.get("architectures") != list(entry_points):
        what = f"architectures are {manifest.get('architectures')}, entry points {list(entry_points)}"
        yield Problem(path, what, "both name the same, in the same order")


def _folders_below(folder: Path) -> list[Path]:
    return [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())] if folder.is_dir() else []
