"""The environment that templates run in: Jinja's immutable sandbox, with everything bounded and most things refused.

Semantics are those of transformers' chat templates: ``trim_blocks``, ``lstrip_blocks``, loop controls, the tag
``generation``, ``raise_exception``, ``strftime_now`` and a ``tojson`` that does not escape HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import TYPE_CHECKING, NoReturn, cast

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.runtime import BlockReference, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from inference_pio.interfaces import TemplateError
from inference_pio.processing import _guards as guards
from inference_pio.processing._meter import CONTAINERS, Meter, TemplateLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jinja2.parser import Parser
    from jinja2.runtime import Context

_MAX_FORMAT_CHARS = 256
_MAX_JSON_DEPTH = 64
# What Jinja hands to functions that take the context; none of ours do.
_SCOPES = ("_loop_vars", "_block_vars")
_LOOP_METHODS = ("changed", "cycle")


class GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's text for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - the base class's type

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own."""
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class TemplateNamespace(Namespace):
    """``namespace()`` without private names. Its text does not show its contents, which may refer to each other."""

    def __init__(*args: object, **kwargs: object) -> None:
        # Not named parameters, so that a template may say namespace(self=1).
        self, *rest = args
        for name in dict(*rest, **kwargs):
            _check_name(name)
        Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """An environment for one template. Renderings must not overlap: ``meter`` is that of the current one."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, limits: TemplateLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, GenerationTag],
            finalize=_finalize,
            optimized=False,
            cache_size=0,
        )
        self.meter = Meter(limits)
        self.filters = {name: self._guarded(JINJA_FILTERS[name], check) for name, check in guards.FILTERS.items()}
        self.filters |= {"format": self._format, "join": self._join, "tojson": self._tojson}
        tests = cast("dict[str, Callable[..., object]]", self.tests)
        self.tests = {name: self._counted_test(test) for name, test in tests.items()}
        self._functions = {
            "dict": _dict,
            "namespace": TemplateNamespace,
            "raise_exception": _raise_exception,
            "range": self.globals["range"],
            "strftime_now": _strftime_now,
        }
        self.globals = dict(self._functions)

    def enter(self, static_chars: int) -> bool:
        """Account for one run of a body that puts out ``static_chars`` characters by itself; True."""
        self.meter.create(static_chars)
        return True

    def weigh(self, value: object) -> object:
        """Hold a new container to the limits; returns it."""
        return self.meter.weigh(value)

    def concatenate(self, *parts: object) -> str:
        """``~``: the texts joined."""
        texts = [str(part) for part in parts]
        self.meter.create(sum(map(len, texts)))
        return "".join(texts)

    def cut(self, value: object, start: object, stop: object, step: object) -> object:
        """``value[start:stop:step]``."""
        if isinstance(value, str):
            self.meter.create(len(value))
        return self.meter.weigh(value[start:stop:step])  # type: ignore[index]  # a wrong type raises TypeError

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """``+``, ``*``, ``**`` and ``%``, each held to the limits before it is computed."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.meter.create(len(left) + len(right))
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if right > 0 and left.bit_length() * right > guards.MAX_INT_BITS:
                raise guards.refuse(f"numbers of more than {guards.MAX_INT_BITS} bits")
        elif operator == "%" and isinstance(left, str):
            guards.check_percent(self.meter, left, right)
        return self.meter.weigh(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: object, /, *args: object, **kwargs: object) -> object:
        """Call what the template may call, within the limits."""
        for scope in _SCOPES:
            kwargs.pop(scope, None)
        if isinstance(function, MethodType) and function.__self__ is self:
            return function(*args, **kwargs)  # put there by the metering transformer
        self.meter.step()
        for argument in (*args, *kwargs.values()):
            self.meter.weigh(argument)
        # Jinja wraps str.format; the method it stands for says which string it belongs to.
        method = getattr(function, "__wrapped__", function)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and isinstance(method, BuiltinMethodType | MethodType):
            return self._call_str_method(owner, method.__name__, function, args, kwargs)
        if isinstance(method, BuiltinMethodType):
            if method.__name__ in guards.METHODS.get(type(owner), ()):
                return method(*args, **kwargs)
            raise guards.refuse(f"{type(owner).__name__}.{method.__name__}()")
        if not self._may_call(function, owner):
            raise SecurityError(f"templates may not call {function!r:.80}")
        return self._account(context.call(function, *args, **kwargs))  # type: ignore[arg-type]  # checked just above

    def _may_call(self, function: object, owner: object) -> bool:
        if isinstance(function, Macro | LoopContext | BlockReference | Undefined):
            return True
        if isinstance(owner, LoopContext):
            return getattr(function, "__name__", "") in _LOOP_METHODS
        return any(function is allowed for allowed in self._functions.values())

    def _call_str_method(
        self, owner: str, name: str, function: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        if name == "join":
            return self._join_texts(owner, *args, **kwargs)  # type: ignore[arg-type]  # a wrong type raises TypeError
        if name not in guards.STR_METHODS:
            raise guards.refuse(f"str.{name}()")
        if (check := guards.STR_METHODS[name]) is not None:
            check(self.meter, owner, *args, **kwargs)
        return self._account(function(*args, **kwargs))  # type: ignore[operator]  # it is a method

    def _check_product(self, left: object, right: object) -> None:
        if isinstance(left, int) and not isinstance(right, int | float):
            left, right = right, left
        if isinstance(left, str | list | tuple) and isinstance(right, int):
            self.meter.create(len(left) * max(right, 0))
        elif (
            isinstance(left, int)
            and isinstance(right, int)
            and left.bit_length() + right.bit_length() > guards.MAX_INT_BITS
        ):
            raise guards.refuse(f"numbers of more than {guards.MAX_INT_BITS} bits")

    def _account(self, result: object) -> object:
        """Account for what a call or a filter returned."""
        if isinstance(result, str):
            self.meter.create(len(result))
        elif isinstance(result, CONTAINERS):
            self.meter.measure(result)
        elif isinstance(result, Iterator):
            return self.meter.counted(result)
        return result

    def _guarded(self, function: Callable[..., object], check: Callable[..., None] | None) -> Callable[..., object]:
        """A filter that is held to the limits."""
        passes = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def guarded(*args: object, **kwargs: object) -> object:
            self.meter.step()
            if check is not None:
                check(self.meter, *args[passes:], **kwargs)
            return self._account(function(*args, **kwargs))

        return guarded

    def _counted_test(self, test: Callable[..., object]) -> Callable[..., object]:
        @wraps(test)
        def counted(*args: object, **kwargs: object) -> object:
            self.meter.step()
            return test(*args, **kwargs)

        return counted

    def _format(self, value: object, *args: object, **kwargs: object) -> str:
        """The filter ``format``: printf style."""
        text = str(value)
        arguments = kwargs or args
        guards.check_percent(self.meter, text, arguments)
        return text % arguments

    def _join(self, value: Iterable[object], d: object = "", attribute: str | int | None = None) -> str:
        """The filter ``join``."""
        if attribute is not None:
            guards.check_attribute(self.meter, None, attribute)
            value = map(make_attrgetter(self, attribute), value)
        return self._join_texts(str(d), [str(item) for item in value])

    def _join_texts(self, separator: str, texts: Iterable[str]) -> str:
        listed = list(texts)
        self.meter.create(sum(map(len, listed)) + len(separator) * len(listed))
        return separator.join(listed)

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """The filter ``tojson``: JSON with its characters as they are."""
        for part in (*(separators or ()), "" if indent is None else indent):
            guards.check_width(part, "an indent or separator of")
        self.meter.measure(value)
        depth, nodes = _shape(value)
        if isinstance(indent, int | str):
            self.meter.create(nodes * abs(guards.check_width(indent, "an indent of")) * depth)
        if separators is not None:
            self.meter.create(nodes * max(map(len, separators)))
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.meter.create(len(text))
        return text


@pass_context  # a finalizer that takes the context is never run on constants while compiling
def _finalize(context: Context, value: object) -> object:
    """What ``{{ value }}`` puts out."""
    meter: Meter = context.environment.meter  # type: ignore[attr-defined]  # our environment
    if isinstance(value, CONTAINERS):
        value = str(value)
    if isinstance(value, str):
        meter.create(len(value))
    return value


def _shape(value: object) -> tuple[int, int]:
    """How deep containers are nested, and how many values there are in all."""
    level, depth, nodes = [value], 0, 1
    while level := [
        inner
        for item in level
        if isinstance(item, list | tuple | dict)
        for inner in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
        nodes += len(level)
        if depth > _MAX_JSON_DEPTH:
            raise guards.refuse(f"tojson() on values nested deeper than {_MAX_JSON_DEPTH}")
    return depth, nodes


def _dict(*args: object, **kwargs: object) -> object:
    """The global ``dict``; a function, since the class itself has more to offer than a template should have."""
    return dict(*args, **kwargs)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"templates may not store {name!r:.80} in a namespace")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError("the chat template refuses the conversation: " + " ".join(str(message).split())[:500])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_FORMAT_CHARS:
        raise guards.refuse(f"a date format of {len(pattern)} characters")
    return datetime.now().strftime(pattern)
