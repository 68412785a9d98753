"""What a Python file imports, read from its syntax tree: nothing is imported or run."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GUARDS = frozenset({"ImportError", "ModuleNotFoundError"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One absolute import, wherever it stands in the file.

    Attributes:
        module: The module that is imported. ``from a import b`` counts as ``a.b``, since ``b`` may be a module.
        line: Line number, from 1.
        type_only: Under ``if TYPE_CHECKING``, so never run.
        guarded: The code goes on without it: in a ``try`` that catches ``ImportError``, or by ``importorskip``.
        deferred: Inside a function: importing the file does not run it.
    """

    module: str
    line: int
    type_only: bool = False
    guarded: bool = False
    deferred: bool = False


def read_imports(path: Path) -> Iterator[Import]:
    """All absolute imports of the file at ``path``: at the top, inside functions, and by ``import_module("name")``.

    Raises:
        SyntaxError: Not Python.
    """
    yield from _walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)), _Place())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where in a file the walk is; fields as those of :class:`Import`."""

    type_only: bool = False
    guarded: bool = False
    deferred: bool = False


def _walk(node: ast.AST, place: _Place) -> Iterator[Import]:
    for module, line, optional in _named(node):
        yield Import(
            module=module,
            line=line,
            type_only=place.type_only,
            guarded=place.guarded or optional,
            deferred=place.deferred,
        )
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        yield from _walk_all(node.body, replace(place, type_only=True))
        yield from _walk_all(node.orelse, place)
    elif isinstance(node, ast.Try) and any(_catches_import_error(handler) for handler in node.handlers):
        yield from _walk_all(node.body, replace(place, guarded=True))
        yield from _walk_all([*node.handlers, *node.orelse, *node.finalbody], place)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        yield from _walk_all(list(ast.iter_child_nodes(node)), replace(place, deferred=True))
    else:
        yield from _walk_all(list(ast.iter_child_nodes(node)), place)


def _walk_all(nodes: list[ast.AST] | list[ast.stmt], place: _Place) -> Iterator[Import]:
    for node in nodes:
        yield from _walk(node, place)


def _named(node: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """Modules that ``node`` itself imports: name, line, and whether the code goes on without it."""
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield alias.name, node.lineno, False
        case ast.ImportFrom(module=str(module), names=names, level=0):
            for alias in names:
                yield module if alias.name == "*" else f"{module}.{alias.name}", node.lineno, False
        case ast.Call(
            func=ast.Name(id="import_module" | "importorskip" as function)
            | ast.Attribute(attr="import_module" | "importorskip" as function),
            args=[ast.Constant(value=str(module)), *_],
        ) if not module.startswith("."):
            yield module, node.lineno, function == "importorskip"


def _is_type_checking(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
    return False


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(name, ast.Name) and name.id in _GUARDS for name in caught)
