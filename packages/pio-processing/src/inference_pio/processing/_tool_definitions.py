"""Tools as requests define them, and which of them a request wants called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from typing import Any

MAX_TOOLS = 128
MAX_NAME_CHARS = 128
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class Tool:
    """One function that a model may call.

    Attributes:
        name: Its name; printable, so that every parser of calls reads it back.
        parameters: JSON schema of its arguments, which are always one object.
        strict: Whether the arguments must be exactly of the schema; otherwise what cannot be enforced is left out.
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool


def read_tools(definitions: Sequence[Mapping[str, object]]) -> tuple[Tool, ...]:
    """The tools of a request, in OpenAI's shapes: ``{"type": "function", "function": {...}}``, or the same flat.

    A definition without ``parameters`` is a function without arguments.

    Raises:
        InvalidRequestError: A definition has another shape, two have one name, or there are more than 128.
    """
    given: object = definitions  # a caller may hand over anything, whatever the annotations say
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise InvalidRequestError(f"tools must be a non-empty list of definitions, got {given!r:.80}")
    if len(given) > MAX_TOOLS:
        raise InvalidRequestError(f"tools must have at most {MAX_TOOLS} definitions, got {len(given)}")
    tools = tuple(_read_tool(definition, place) for place, definition in enumerate(given))
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise InvalidRequestError(f"two tools are named {tool.name!r}", hint="give each a name of its own")
        seen.add(tool.name)
    return tools


def chosen_tools(tools: tuple[Tool, ...], choice: object) -> tuple[tuple[Tool, ...], str]:
    """The tools that may be called, and how: ``"none"``, ``"auto"``, ``"required"``, or ``"named"`` for exactly one.

    Args:
        tools: All tools of the request.
        choice: ``"none"``, ``"auto"``, ``"required"``, or ``{"type": "function", "function": {"name": ...}}``, also
            flat.

    Raises:
        InvalidRequestError: Another choice, or no such tool.
    """
    if isinstance(choice, str) and choice in _CHOICES:
        return tools, choice
    name = _function(choice).get("name") if isinstance(choice, Mapping) else None
    if not isinstance(name, str):
        raise InvalidRequestError(
            f"tool_choice must be one of {', '.join(_CHOICES)} or name a function, got {choice!r:.80}",
            hint='such as {"type": "function", "function": {"name": "f"}}',
        )
    for tool in tools:
        if tool.name == name:
            return (tool,), "named"
    raise InvalidRequestError(
        f"tool_choice names {name[:80]!r}, which is none of the tools",
        hint=f"there are {', '.join(tool.name for tool in tools[:8])}",
    )


def _function(value: Mapping[str, object]) -> Mapping[str, object]:
    """What describes the function, whether nested or flat."""
    inner = value.get("function")
    return inner if isinstance(inner, Mapping) else value


def _read_tool(definition: object, place: int) -> Tool:
    if not isinstance(definition, Mapping) or definition.get("type", "function") != "function":
        raise InvalidRequestError(f"tools[{place}] must be a definition of type 'function', got {definition!r:.80}")
    function = _function(definition)
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequestError(
            f"tools[{place}] needs a name of 1 to {MAX_NAME_CHARS} printable characters, got {name!r:.200}"
        )
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequestError(f"strict of tool {name!r} must be true or false, got {strict!r:.80}")
    return Tool(name, _parameters(name, function.get("parameters")), bool(strict))


def _parameters(name: str, schema: object) -> dict[str, Any]:
    """The schema, restricted to objects."""
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(f"parameters of tool {name!r} must be a JSON schema, got {schema!r:.80}")
    kinds = schema.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list | tuple) and "object" in kinds):
        raise InvalidRequestError(
            f"parameters of tool {name!r} must describe an object, got type {kinds!r:.80}",
            hint='arguments are passed by name: {"type": "object", "properties": {...}}',
        )
    return {**schema, "type": "object"}
