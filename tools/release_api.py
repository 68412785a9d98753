"""Which names of a distribution are new since a release, and who has begun to use them.

What counts as use can be checked by machine. A *name* is an identifier that the portion defines or offers in public: a
module, function, class, method, field, parameter, or an entry of ``__all__``. It is *new* since a release in whose
source the identifier is defined nowhere. A dependent *has begun to use* it if a module of its ``src/`` that imports the
portion mentions it now, as something imported, an attribute or a keyword, and none did in the dependent's own last
release. New behaviour behind an old name is not seen here: that is what the tests at the lowest versions of ``check``
are for.
"""

from __future__ import annotations

import ast
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from release_git import python_files_at, released_versions, tag_name
from release_refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from packaging.version import Version

    from release_bounds import Bound
    from workspace import Member

Files = dict[PurePosixPath, str]


def lowest_with_used_names(root: Path, bound: Bound, members: Mapping[str, Member], upcoming: str | None) -> str | None:
    """The lowest version of the bound's target with every name that its dependent has begun to use.

    None where the bound admits no lower one, which is to leave it as it is.

    Args:
        root: The repository.
        bound: A published bound on another distribution.
        members: The tree.
        upcoming: The version of the target that is released with or before the dependent, if that is not out.

    Raises:
        RefusedError: No release has the name, and none is coming.
    """
    target, dependent = members[bound.target], members[bound.dependent]
    admitted = [version for version in released_versions(root, target.name) if bound.admits(version)]
    if not admitted:
        return None
    now = files_now(target)
    used = _begun_to_use(root, dependent, target) & defined_names(now)
    if not used:
        return None
    for version in admitted:
        names = defined_names(_files_of(root, target, version))
        if used <= names:
            return None if version == admitted[0] else str(version)
    if upcoming is None:
        missing = ", ".join(sorted(used - names))
        what = f"{dependent.name} uses {missing} of {target.name}, and {admitted[-1]}, its last release, has not"
        raise RefusedError(f"{what}: prepare {target.name} too")
    return upcoming


def defined_names(files: Mapping[PurePosixPath, str]) -> frozenset[str]:
    """Every public identifier that ``files`` define, modules included.

    Raises:
        SyntaxError: Not Python.
    """
    names = {part.removesuffix(".py") for path in files for part in path.parts}
    for path, text in files.items():
        for node in ast.walk(ast.parse(text, filename=str(path))):
            names.update(_defined_by(node))
    return frozenset(name for name in names if not name.startswith("_"))


def used_names(files: Mapping[PurePosixPath, str], leaf: str) -> frozenset[str]:
    """What modules that import ``leaf`` mention: imported names, attributes and keywords.

    Raises:
        SyntaxError: Not Python.
    """
    names: set[str] = set()
    for path, text in files.items():
        nodes = list(ast.walk(ast.parse(text, filename=str(path))))
        imported = {name for node in nodes for name in _imported_by(node, leaf)}
        if imported:
            names |= imported
            names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            names |= {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    return frozenset(names)


def files_now(member: Member) -> Files:
    """The Python files of the portion of ``member``, as they lie in the tree."""
    [leaf] = member.leaves
    folder = member.leaf_folder(leaf)
    paths = sorted(folder.rglob("*.py"))
    return {PurePosixPath(path.relative_to(folder).as_posix()): path.read_text(encoding="utf-8") for path in paths}


def _begun_to_use(root: Path, dependent: Member, target: Member) -> frozenset[str]:
    [leaf] = target.leaves
    used = used_names(files_now(dependent), leaf)
    if released := released_versions(root, dependent.name):
        used -= used_names(_files_of(root, dependent, released[-1]), leaf)
    return used


def _files_of(root: Path, member: Member, version: Version) -> Files:
    [leaf] = member.leaves
    return python_files_at(root, tag_name(member.name, version), member.leaf_folder(leaf))


def _defined_by(node: ast.AST) -> Iterable[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.arg():
            return [node.arg]
        case ast.Name(ctx=ast.Store()):
            return [node.id]
        case ast.Attribute(ctx=ast.Store()):
            return [node.attr]
        case ast.ImportFrom() | ast.Import():
            return [alias.asname or alias.name for alias in node.names]
    return []


def _imported_by(node: ast.AST, leaf: str) -> Iterable[str]:
    parent, _, last = leaf.rpartition(".")
    match node:
        case ast.ImportFrom(module=str(module), level=0) if module == parent:
            return [last] if any(alias.name == last for alias in node.names) else []
        case ast.ImportFrom(module=str(module), level=0) if module == leaf or module.startswith(f"{leaf}."):
            return [*module.removeprefix(leaf).strip(".").split("."), *(alias.name for alias in node.names)]
        case ast.Import():
            below = [alias.name for alias in node.names if alias.name == leaf or alias.name.startswith(f"{leaf}.")]
            return [part for name in below for part in [leaf, *name.removeprefix(leaf).strip(".").split(".")]]
    return []
