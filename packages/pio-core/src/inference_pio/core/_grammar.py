"""From the form that a request asks for to a grammar of ``llguidance``, within bounds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from inference_pio.interfaces import StructuredOutputs

_JSON = "JSON schema"
MAX_CHARS = MappingProxyType({_JSON: 64 * 1024, "choice": 256 * 1024, "regex": 32 * 1024, "grammar": 32 * 1024})
"""By form; the time to compile grows with the square of a grammar's length, and is some tenths of a second here."""
MAX_INLINE_CHARS = 128 * 1024
"""Of all schemas within one grammar; they do not count as its own characters."""
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_NODES = 20_000
MAX_MULTIPLE = 10_000
"""Of the least common multiple of a schema's ``multipleOf``: the parser has a state for each remainder."""
_MAX_REASON_CHARS = 300
# Models that know no better write white space without end where a schema allows it.
_WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"

_WAYS_OUT = MappingProxyType(
    {
        _JSON: 'leave the keyword out, or correct it; {"type": "object"} allows any object',
        "regex": "Rust's syntax: no look-around, no back-references, no anchors needed",
        "choice": "give other texts",
        "grammar": 'Lark\'s syntax, such as start: "yes" | "no", or GBNF\'s, such as root ::= "yes" | "no"',
    }
)
_LARK_PARTS = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/|(<[^\s<>]*>)|%json\b\s*()')
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def form_name(structured: StructuredOutputs) -> str:
    """What the form is called in messages."""
    if structured.json is not None:
        return _JSON
    return next(name for name in ("regex", "choice", "grammar") if getattr(structured, name) is not None)


def way_out(form: str) -> str:
    """A hint for a form that cannot be used."""
    return _WAYS_OUT[form]


def grammar_source(structured: StructuredOutputs) -> str:
    """The form as a grammar of ``llguidance``; equal forms give equal texts.

    Raises:
        InvalidRequestError: Not JSON, beyond the bounds, or text without UTF-8.
    """
    from llguidance import LLMatcher

    if structured.json is not None:
        return _schema_grammar(structured.json)
    if structured.regex is not None:
        return LLMatcher.grammar_from_regex(_bounded("regex", structured.regex))
    if structured.choice is not None:
        literals = " | ".join(json.dumps(_bounded("choice", text), ensure_ascii=False) for text in structured.choice)
        return LLMatcher.grammar_from_lark(_bounded("choice", f"start: {literals}"))
    return LLMatcher.grammar_from_lark(_checked_lark(structured.grammar or ""))


def one_line(message: str) -> str:
    """What a message of ``llguidance`` says, without the state of its parser."""
    text = re.split(r"\n?<(?:state|backtrace|non-verbose/)>", message, maxsplit=1)[0]
    errors = re.findall(r"^\s*error: (.+)$", text, flags=re.MULTILINE)
    reason = errors[0] if errors else re.split(r"\n\s+\d+ \| ", text, maxsplit=1)[0]
    return " ".join(reason.split())[:_MAX_REASON_CHARS]


def _checked_lark(grammar: str) -> str:
    """A grammar as Lark, its schemas and its own text within bounds, without special tokens."""
    if _GBNF_RULE.search(grammar) and not _names_start(grammar):
        grammar = _from_gbnf(_bounded("grammar", grammar))
    inline = nodes = position = 0
    while (match := _LARK_PARTS.search(grammar, position)) is not None:
        if match[1]:
            raise InvalidRequestError(
                f"the grammar of structured_outputs names token {match[1][:80]}",
                hint='special tokens are no text; write others in quotes, such as "<b>"',
            )
        position = match.end()
        if match[2] is not None:
            value, position = _inline_schema(grammar, position)
            nodes = _Plain(nodes).check(value)
            inline += position - match.end()
    if inline > MAX_INLINE_CHARS:
        raise InvalidRequestError(
            f"the schemas in the grammar of structured_outputs have {inline} characters; the limit is "
            f"{MAX_INLINE_CHARS}",
            hint="simplify them, or give fewer tools",
        )
    _bounded("grammar", grammar, besides=inline)
    return grammar


def _names_start(grammar: str) -> bool:
    return re.search(r"^\s*(?:start\b[^:\n]*:(?!:)|%llguidance\b)", grammar, re.MULTILINE) is not None


def _from_gbnf(grammar: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(grammar)
    except Exception as error:  # the converter raises bare exceptions for what it cannot read
        raise InvalidRequestError(
            f"the grammar of structured_outputs cannot be used: {one_line(str(error) or type(error).__name__)}",
            hint=way_out("grammar"),
        ) from error


def _inline_schema(grammar: str, start: int) -> tuple[object, int]:
    """The schema that begins at ``start``, and where it ends."""
    try:
        value, end = json.JSONDecoder().raw_decode(grammar, start)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise InvalidRequestError(
            f"a {_JSON} in the grammar of structured_outputs is no JSON: {error}", hint="correct what follows %json"
        ) from error
    _bounded(_JSON, grammar[start:end])
    return value, end


def _bounded(form: str, text: str, *, besides: int = 0) -> str:
    if len(text) - besides > MAX_CHARS[form]:
        raise InvalidRequestError(
            f"the {form} of structured_outputs has {len(text) - besides} characters; the limit is {MAX_CHARS[form]}",
            hint="simplify it",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"the {form} of structured_outputs has no UTF-8: {error.reason}") from error
    return text


def _schema_grammar(schema: str | Mapping[str, object]) -> str:
    from llguidance import LLMatcher

    try:
        value = json.loads(_bounded(_JSON, schema)) if isinstance(schema, str) else schema
        plain = _Plain().copy(_schema(value), 0)
        text = _bounded(_JSON, json.dumps(plain, allow_nan=False, ensure_ascii=False))
        return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITE_SPACE})
    except RecursionError as error:
        raise _too_deep() from error
    except InvalidRequestError:
        raise
    except (TypeError, ValueError) as error:  # text or values that are not JSON, or options of another type
        raise InvalidRequestError(f"the {_JSON} of structured_outputs cannot be used: {error}") from error


def _schema(value: object) -> Mapping[str, object]:
    """The schema as an object; ``true`` is the one that allows everything."""
    if value is True:
        return {}
    if value is False:
        raise InvalidRequestError(f"no text matches the {_JSON} false", hint=way_out(_JSON))
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"the {_JSON} must be an object or a boolean, got {value!r:.80}")
    return value


class _Plain:
    """Copies mappings and sequences to what JSON knows; counts, for the same part may come in many places.

    Args:
        nodes: Parts that were counted before.
    """

    def __init__(self, nodes: int = 0) -> None:
        self._nodes = nodes
        self._multiple = 1

    def check(self, value: object) -> int:
        """Hold ``value`` to the bounds; returns the parts counted so far."""
        self.copy(value, 0)
        return self._nodes

    def copy(self, value: object, depth: int) -> object:
        """``value`` without a mapping or sequence of the caller's."""
        self._nodes += 1
        if self._nodes > MAX_SCHEMA_NODES:
            raise InvalidRequestError(f"the {_JSON} has more than {MAX_SCHEMA_NODES} parts", hint="simplify it")
        if depth > MAX_SCHEMA_DEPTH:
            raise _too_deep()
        if isinstance(value, Mapping):
            self._check_multiple(value.get("multipleOf"))
            return {_key(key): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, depth + 1) for item in value]
        return value

    def _check_multiple(self, divisor: object) -> None:
        if not isinstance(divisor, int | float) or isinstance(divisor, bool) or not math.isfinite(divisor):
            return  # no multiple, or one that the compiler refuses
        digits = "".join(map(str, Decimal(str(divisor)).normalize().as_tuple().digits))
        self._multiple = math.lcm(self._multiple, int(digits) or 1)
        if self._multiple > MAX_MULTIPLE:
            raise InvalidRequestError(
                f"the {_JSON} asks for multiples of {divisor!r:.40}, too much beside its others",
                hint=f"the least common multiple of all multipleOf may be {MAX_MULTIPLE} at most, decimal places aside",
            )


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidRequestError(f"keys of the {_JSON} must be strings, got {key!r:.80}")
    return key


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(f"the {_JSON} is nested more than {MAX_SCHEMA_DEPTH} deep", hint="use $defs and $ref")
