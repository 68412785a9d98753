"""Rules about extras: what imports without them, and what does not.

``[tool.pio-workspace.extra-modules]`` of a ``pyproject.toml`` names the modules that import only with an extra, such as
``"inference_pio.core.torch_executor" = "torch"``. Every other module imports with the dependencies alone: what an extra
brings it may import only inside a function. The isolated tests import exactly the modules that this allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from problem import Problem, Workspace
from rules_dependencies import distribution_of
from source_imports import Import, read_imports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from workspace import Member

TABLE = "[tool.pio-workspace.extra-modules]"


def check_extra_modules(member: Member, workspace: Workspace) -> Iterator[Problem]:
    """The table is true: its modules and extras exist, its modules need their extra, and no other module needs one."""
    path = member.folder / "pyproject.toml"
    listed = member.extra_modules
    modules = dict(_modules(member))
    for module, extra in listed.items():
        if module not in modules:
            yield Problem(path, f"{TABLE} names {module}, which is not there", "remove the line")
        elif extra not in member.extras:
            known = ", ".join(member.extras) or "none"
            yield Problem(path, f"{TABLE}: {module} needs an extra {extra!r}", f"extras are {known}")
    for module, source in modules.items():
        found = [entry for entry in read_imports(source) if _runs_at_import(entry)]
        if module in listed:
            if not any(_extra_of(entry, member, workspace) for entry in found):
                what = f"{TABLE}: {module} imports nothing that only an extra brings"
                yield Problem(path, what, "remove the line")
            continue
        for entry in found:
            if needed := _extra_of(entry, member, workspace):
                what = f"imports {entry.module}, which only the extra {needed!r} brings"
                way_out = f'import it inside a function, or add `"{module}" = "{needed}"` to {TABLE}'
                yield Problem(source, what, way_out, entry.line)


def _extra_of(found: Import, member: Member, workspace: Workspace) -> str | None:
    """The extra without which the import fails, or None if it needs none."""
    for module, needed in member.extra_modules.items():
        if found.module == module or found.module.startswith(f"{module}."):
            return needed
    distribution = distribution_of(found.module, member, workspace)
    if distribution is None or distribution in {canonicalize_name(entry.name) for entry in member.dependencies}:
        return None
    for extra, entries in member.extras.items():
        if distribution in {canonicalize_name(entry.name) for entry in entries}:
            return extra
    return None  # not declared at all, which another rule says


def _runs_at_import(found: Import) -> bool:
    return not (found.type_only or found.guarded or found.deferred)


def _modules(member: Member) -> Iterator[tuple[str, Path]]:
    """Name and file of every module of the distribution."""
    source = member.folder / "src"
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
