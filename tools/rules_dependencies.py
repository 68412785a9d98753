"""Rules about what a distribution declares and what it imports.

What counts as declared:

- Code under ``src/`` may import the standard library, the distribution's dependencies and its extras, whether at the
  top of a file or inside a function (where what only an extra brings may stand, :mod:`rules_extras` says). An import
  under ``if TYPE_CHECKING`` never runs: of a third party it is free (that is how the contracts describe tensors without
  needing torch), of a sibling it is declared like any other.
- A dependency must be imported somewhere. Three kinds work without: model plugins, which are found by entry point;
  numpy beside torch, which needs it for every array that crosses over and does not depend on it; and what is run as a
  program, which ``programs`` of ``[tool.pio-workspace]`` names.
- Tests and benchmarks may import all that and the dependency groups. What they reach for in a ``try`` with ``except
  ImportError``, or by ``importorskip``, need not be declared: they go on without it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from packaging.version import Version

from problem import Problem, Workspace
from source_imports import Import, read_imports
from workspace import NAMESPACE, Member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from packaging.requirements import Requirement

# By the longest name that is one here: several distributions may share the first part.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "protobuf",
    "llama_cpp": "ik-llama-cpp-python",
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "yaml": "pyyaml",
}
"""Distributions whose import name is not their own name."""

_PLUGIN_PREFIX = "pio-model-"


def check_requirements(member: Member, workspace: Workspace) -> Iterator[Problem]:
    """Siblings are bounded to one minor, which the tree's version is in; everything else has a floor."""
    path = member.folder / "pyproject.toml"
    for where, requirement in _all_requirements(member):
        sibling = workspace.members.get(canonicalize_name(requirement.name))
        if sibling is None:
            if not any(specifier.operator in {">=", "==", "~="} for specifier in requirement.specifier):
                yield Problem(path, f"{where}: {requirement} has no floor", "name the lowest version that is tested")
        elif sibling is member:
            continue
        elif not _bounded_to_one_minor(requirement):
            way_out = f"write `{requirement.name}>=0.A,<0.(A+1)`, for the tree {_bound(sibling.version)}"
            yield Problem(path, f"{where}: {requirement} is not bounded to one minor", way_out)
        elif sibling.version not in requirement.specifier:
            what = f"{where}: {requirement} excludes the tree's {sibling.version}"
            yield Problem(path, what, f"raise the bound to {_bound(sibling.version)}")


def check_source_imports(member: Member, workspace: Workspace) -> Iterator[Problem]:
    """What ``src/`` imports is declared, and what is declared is imported."""
    needed = {canonicalize_name(entry.name) for entry in member.dependencies}
    optional = {canonicalize_name(entry.name) for entries in member.extras.values() for entry in entries}
    imported: set[str] = set()
    for path, found in _imports_below(member.folder / "src"):
        distribution = distribution_of(found.module, member, workspace)
        if distribution is None:
            continue
        imported.add(distribution)
        free = found.type_only and distribution not in workspace.members
        if distribution not in needed | optional and not free:
            what = f"imports {found.module}, and {member.name} does not declare {distribution}"
            yield Problem(path, what, "declare it in [project] dependencies or an extra", found.line)
    path = member.folder / "pyproject.toml"
    for name in sorted(needed - imported - member.programs):
        if name.startswith(_PLUGIN_PREFIX) or (name == "numpy" and "torch" in needed):
            continue
        yield Problem(path, f"declares {name}, which nothing under src/ imports", "remove it")
    for name in sorted(optional - imported - needed - workspace.members.keys() - member.programs):
        yield Problem(path, f"an extra declares {name}, which nothing under src/ imports", "remove it")


def check_test_imports(member: Member, workspace: Workspace) -> Iterator[Problem]:
    """What tests and benchmarks import is declared by the distribution or its dependency groups."""
    declared = {canonicalize_name(entry.name) for _, entry in _all_requirements(member)}
    for folder in ("tests", "benchmarks"):
        for path, found in _imports_below(member.folder / folder):
            distribution = distribution_of(found.module, member, workspace)
            if distribution is None or distribution in declared or found.guarded:
                continue
            if found.type_only and distribution not in workspace.members:
                continue
            if folder == "benchmarks" and (path.parent / f"{found.module.partition('.')[0]}.py").is_file():
                continue
            what = f"imports {found.module}, and {member.name} does not declare {distribution}"
            yield Problem(path, what, "declare it in the `test` dependency group", found.line)


def _bounded_to_one_minor(requirement: Requirement) -> bool:
    bounds = {specifier.operator: Version(specifier.version) for specifier in requirement.specifier}
    if bounds.keys() != {">=", "<"} or len(list(requirement.specifier)) != len(bounds):
        return False
    return str(bounds["<"]) == next_minor(bounds[">="])


def _bound(version: str) -> str:
    parsed = Version(version)
    return f">={parsed.major}.{parsed.minor},<{next_minor(parsed)}"


def next_minor(version: Version) -> str:
    """The lowest version that may break who works with ``version``, as a bound writes it."""
    return f"0.{version.minor + 1}" if version.major == 0 else str(version.major + 1)


def _all_requirements(member: Member) -> Iterator[tuple[str, Requirement]]:
    for requirement in member.dependencies:
        yield "dependencies", requirement
    for extra, requirements in member.extras.items():
        for requirement in requirements:
            yield f"extra {extra!r}", requirement
    for group, requirements in member.groups.items():
        for requirement in requirements:
            yield f"group {group!r}", requirement


def distribution_of(module: str, member: Member, workspace: Workspace) -> str | None:
    """Canonical name of the distribution that ``module`` comes from, or None if that is Python or ``member`` itself."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return None
    if top == NAMESPACE:
        for name, other in workspace.members.items():
            if any(module == leaf or module.startswith(f"{leaf}.") for leaf in other.leaves):
                return None if other is member else name
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    known = next((_DISTRIBUTIONS[name] for name in names if name in _DISTRIBUTIONS), None)
    return canonicalize_name(known or (module if top == NAMESPACE else top))


def _imports_below(folder: Path) -> Iterator[tuple[Path, Import]]:
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else ():
        for found in read_imports(path):
            yield path, found
