"""Grammars of tool calls: what a model may write so that its parser of calls reads valid calls back."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_pio.interfaces import InvalidRequestError, StructuredOutputs
from inference_pio.processing._lark import json_value, literal
from inference_pio.processing._reasoning_grammar import reasoning_prefix
from inference_pio.processing._tool_definitions import chosen_tools, read_tools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inference_pio.processing._tool_definitions import Tool

MAX_CALLS = 64


@dataclass(frozen=True, slots=True)
class _Format:
    """How a family of models writes calls.

    Attributes:
        opening: How a call begins.
        before: Between that and the call's object.
        arguments: Key of the arguments.
        after: After the call's object.
        between: Between two calls.
        text: Lark rules of what may be written where calls are free to come or not: ``free`` without any call, and
            ``head``, which ends where the first call has begun.
    """

    opening: str
    before: str
    arguments: str
    after: str
    between: str
    text: str


_FORMATS = MappingProxyType(
    {
        "hermes": _Format(
            opening="<tool_call>",
            before="\n",
            arguments="arguments",
            after="\n</tool_call>",
            between="\n",
            text='free: /(.|\\n)*/\nhead[lazy]: /(.|\\n)*/ "<tool_call>"\n',
        ),
        # An answer is a call or text as a whole; one that begins with a brace is meant as a call.
        "llama3-json": _Format(
            opening="",
            before="",
            arguments="parameters",
            after="",
            between="; ",
            text='free: /[ \\t\\r\\n]*([^{ \\t\\r\\n](.|\\n)*)?/\nhead: ""\n',
        ),
    }
)


def tool_call_grammar(
    parser: str,
    tools: Sequence[Mapping[str, object]],
    *,
    tool_choice: str | Mapping[str, object] = "required",
    parallel_tool_calls: bool = True,
    reasoning_parser: str | None = None,
    prompt: str = "",
) -> StructuredOutputs | None:
    """The form of an answer that calls tools, in the format that :func:`tool_call_parser` of the same name reads.

    Args:
        parser: Name of the parser: ``"hermes"`` or ``"llama3-json"``.
        tools: Definitions in OpenAI's shape. Arguments follow the schema, to the letter where ``strict`` is true and
            else as far as it can be enforced.
        tool_choice: ``"required"`` for one or more calls and nothing else, a named function for exactly one call of it,
            ``"auto"`` for text, calls, or text before calls, ``"none"``.
        parallel_tool_calls: Whether there may be several calls; at most 64.
        reasoning_parser: Name of the model's reasoning parser: reasoning may then come first.
        prompt: What the answer continues; some templates end with the tag that opens the reasoning.

    Returns:
        The form; None where there is nothing to enforce: ``"none"``, and ``"auto"`` without a strict tool and with
        parallel calls.

    Raises:
        InvalidRequestError: No such parser, or malformed tools or choice. What is wrong within a schema shows where the
            request is added.
    """
    if parser not in _FORMATS:
        raise InvalidRequestError(f"no tool call parser is named {parser!r}", hint=f"there are {', '.join(_FORMATS)}")
    allowed, how = chosen_tools(read_tools(tools), tool_choice)
    if how == "none" or (how == "auto" and parallel_tool_calls and not any(tool.strict for tool in allowed)):
        return None
    form = _FORMATS[parser]
    several = parallel_tool_calls and how != "named"
    reasoning, think = ("", "") if reasoning_parser is None else reasoning_prefix(reasoning_parser, prompt)
    more = f" ({literal(form.between + form.opening)} call){{0,{MAX_CALLS - 1}}}" if several else ""
    if how == "auto":
        body, rules = f"free | head call{more}", form.text
    else:
        body, rules = f"{literal(form.opening)} call{more}", ""
    objects = " | ".join(f"call_{index}" for index in range(len(allowed)))
    lark = (
        f"start: {think}body\nbody: {body}\n{rules}{reasoning}"
        f"call: {literal(form.before)} ({objects}) {literal(form.after)}\n"
    )
    return StructuredOutputs(grammar=lark + "".join(_object(form, tool, index) for index, tool in enumerate(allowed)))


def _object(form: _Format, tool: Tool, index: int) -> str:
    """Lark rules of the object of one call."""
    head = f'{{"name": {literal(tool.name)}, "{form.arguments}": '
    try:
        arguments = json_value(tool.parameters, lenient=not tool.strict)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"parameters of tool {tool.name!r} are not JSON: {error}") from error
    return f'call_{index}: {literal(head)} arguments_{index} "}}"\narguments_{index}: {arguments}\n'
