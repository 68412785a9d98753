"""Rewrites a parsed template so that everything it does passes by the environment's meter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BODIES = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


class MeteringTransformer(NodeTransformer):
    """Puts a call of the environment wherever a template can repeat itself or make a value without calling anything.

    Loops, macros and blocks begin with ``environment.enter``; list, tuple and dict literals pass through
    ``environment.weigh``; ``~`` becomes ``environment.concatenate`` and a slice ``environment.cut``. Operators, calls
    and filters pass by a sandboxed environment anyway.

    Raises:
        TemplateSyntaxError: The template loads others, or switches on HTML escaping.
    """

    def visit(self, node: nodes.Node, *args: object, **kwargs: object) -> nodes.Node:
        """``node`` rewritten, its children first."""
        self.generic_visit(node, *args, **kwargs)
        match node:
            case nodes.For() | nodes.Macro() | nodes.CallBlock() | nodes.Block():
                enter = _call("enter", nodes.Const(_static_chars(node.body)), lineno=node.lineno)
                node.body.insert(0, nodes.ExprStmt(enter, lineno=node.lineno))
                if isinstance(node, nodes.For) and node.test is not None:
                    # An item that the condition leaves out never reaches the body.
                    look = _call("enter", nodes.Const(0), lineno=node.lineno)
                    node.test = nodes.And(look, node.test, lineno=node.lineno)
            case nodes.Tuple(ctx="store"):
                pass
            case nodes.List() | nodes.Tuple() | nodes.Dict():
                return _call("weigh", node, lineno=node.lineno)
            case nodes.Concat():
                return _call("concatenate", *node.nodes, lineno=node.lineno)
            case nodes.Getitem(arg=nodes.Slice() as cut):
                bounds = [part or nodes.Const(None) for part in (cut.start, cut.stop, cut.step)]
                return _call("cut", node.node, *bounds, lineno=node.lineno)
            case nodes.Include() | nodes.Extends() | nodes.Import() | nodes.FromImport():
                raise TemplateSyntaxError("a chat template cannot load other templates", node.lineno)
            case nodes.EvalContextModifier():
                raise TemplateSyntaxError("a chat template cannot switch on HTML escaping", node.lineno)
        return node


def iterates_content(template: nodes.Template) -> bool:
    """Whether a template loops over the parts of a message's content itself."""
    names = {"content"}
    for assign in template.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    return any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def _static_chars(body: Sequence[nodes.Node]) -> int:
    """Characters of text that a body puts out each time, those of bodies inside it not counted."""
    return sum(len(data.data) for node in body for data in _static_data(node))


def _static_data(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    elif not isinstance(node, _BODIES):
        for child in node.iter_child_nodes():
            yield from _static_data(child)


def _call(name: str, *args: nodes.Expr, lineno: int) -> nodes.Call:
    attribute = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(attribute, list(args), [], None, None, lineno=lineno)
