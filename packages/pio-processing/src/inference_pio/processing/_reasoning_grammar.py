"""Reasoning before a form: a model that thinks may do so before the text that must have the form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from inference_pio.interfaces import InvalidRequestError, StructuredOutputs
from inference_pio.processing._lark import json_value, literal
from inference_pio.processing._reasoning import prompt_opens_reasoning, reasoning_tags

_ANY = r"/(.|\n)*/"


def reasoning_prefix(name: str, prompt: str) -> tuple[str, str]:
    """Lark rules for reasoning, and how a rule that comes after it begins.

    Args:
        name: Of the reasoning parser.
        prompt: What the text continues. If it ends with the opening tag, the text begins within the reasoning, and that
            must be closed; otherwise there may be reasoning or not.

    Raises:
        InvalidRequestError: There is no such parser.
    """
    opening, closing = reasoning_tags(name)
    space = r"reasoning_space: /[\r\n]{0,8}/"
    if prompt_opens_reasoning(name, prompt):
        return f"reasoning[lazy]: {_ANY} {literal(closing)}\n{space}\n", "reasoning reasoning_space "
    rules = f"reasoning[lazy]: {literal(opening)} {_ANY} {literal(closing)}\n{space}\n"
    return rules, "(reasoning reasoning_space)? "


def after_reasoning(form: StructuredOutputs, name: str, *, prompt: str = "") -> StructuredOutputs:
    """The form for a model that shows its reasoning: ``form`` holds for what follows the reasoning.

    Args:
        form: What the answer proper must be.
        name: Of the reasoning parser.
        prompt: As in :func:`reasoning_parser`.

    Raises:
        InvalidRequestError: There is no such parser, or a JSON schema is not JSON.
    """
    rules, think = reasoning_prefix(name, prompt)
    return StructuredOutputs(grammar=f"start: {think}form\n{rules}form: {_as_lark(form)}\n")


def _as_lark(form: StructuredOutputs) -> str:
    if form.regex is not None:
        return f"/{_within_slashes(form.regex)}/"
    if form.choice is not None:
        return " | ".join(map(literal, form.choice))
    if form.grammar is not None:
        return f"%lark {{\n{form.grammar}\n}}"
    try:
        schema = json.loads(form.json) if isinstance(form.json, str) else form.json
        return json_value(_object({} if schema is True else schema), lenient=False)
    except InvalidRequestError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the JSON schema of structured_outputs cannot be used: {error}") from error


def _object(schema: object) -> Mapping[str, object]:
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(f"the JSON schema of structured_outputs must be an object, got {schema!r:.80}")
    return schema


def _within_slashes(regex: str) -> str:
    """``regex`` as Lark writes it between slashes, on one line."""
    escaped = re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", regex, flags=re.DOTALL)
    return escaped.replace("\n", r"\n").replace("\r", r"\r")
