"""Chat templates: a conversation becomes the text that the model was trained to continue."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from inference_pio.interfaces import InvalidRequestError, TemplateError
from inference_pio.processing._messages import plain, plain_messages
from inference_pio.processing._meter import Meter, TemplateLimits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import jinja2

    from inference_pio.processing._sandbox import TemplateEnvironment

DEFAULT_LIMITS = TemplateLimits()
MAX_TEMPLATE_BYTES = DEFAULT_LIMITS.source_bytes

_TEMPLATE_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
# What a template's own operations raise when they do not fit its data.
_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError, ValueError)


class ChatTemplate:
    """A Jinja chat template, run in a sandbox with bounds on time, memory and output.

    Templates come with models and are not trusted: they reach nothing but their variables, may call nothing but what
    templates need, and stop at :class:`TemplateLimits`. Safe to share between threads; renderings take turns.

    Args:
        source: The template.
        special_tokens: Named special tokens, such as ``{"bos_token": "<s>"}``: variables of the template.
        limits: What a rendering may use up.

    Raises:
        TemplateError: ``source`` is too long.
    """

    def __init__(
        self, source: str, *, special_tokens: Mapping[str, str], limits: TemplateLimits = DEFAULT_LIMITS
    ) -> None:
        size = len(source.encode(errors="surrogatepass"))
        if size > limits.source_bytes:
            raise TemplateError(f"the chat template has {size} bytes; the limit is {limits.source_bytes}")
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._limits = limits
        self._lock = threading.Lock()

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> str:
        """The text of a conversation, as transformers renders it.

        Args:
            messages: Mappings with ``role`` and mostly ``content``: text, or a list of ``{"type": "text"}`` parts
                (joined by newlines if the template itself does not go through them).
            add_generation_prompt: End with what starts the assistant's answer.
            tools: JSON schemas of the tools that the model may call.
            documents: Documents for templates that know them.
            kwargs: More variables for the template, such as ``enable_thinking=False``.

        Raises:
            TemplateError: The template is wrong, fails, refuses the conversation or exceeds its limits.
            InvalidRequestError: Messages, tools or variables that are not plain JSON values of the right shape.
        """
        variables = self._variables(tools, documents, kwargs)
        with self._lock:
            environment, template, keeps_parts = self._compiled
            environment.meter = meter = Meter(self._limits)
            checked = plain_messages(messages, keep_parts=keeps_parts)
            meter.measure((checked, variables))
            return self._run(template, checked, {**variables, "add_generation_prompt": add_generation_prompt})

    def _variables(
        self,
        tools: Sequence[Mapping[str, object]] | None,
        documents: Sequence[Mapping[str, object]] | None,
        kwargs: Mapping[str, object],
    ) -> dict[str, object]:
        variables: dict[str, object] = {**self._special_tokens, "tools": None, "documents": None}
        for name, items in (("tools", tools), ("documents", documents)):
            made = plain(list(items) if isinstance(items, tuple) else items, name)
            if made is not None and not (isinstance(made, list) and all(isinstance(item, dict) for item in made)):
                raise InvalidRequestError(f"{name} must be a list of dicts, got {items!r:.60}")
            variables[name] = made
        for name, value in kwargs.items():
            if name in _TEMPLATE_VARIABLES or name.startswith("_"):
                raise InvalidRequestError(f"{name!r} cannot be set as a template variable")
            variables[name] = plain(value, name)
        return variables

    def _run(self, template: jinja2.Template, messages: object, variables: Mapping[str, object]) -> str:
        import jinja2

        pieces: list[str] = []
        size = 0
        try:
            for piece in template.generate(messages=messages, **variables):
                size += len(piece)
                if size > self._limits.output_chars:
                    raise TemplateError(f"the chat template writes more than {self._limits.output_chars} characters")
                pieces.append(piece)
        except jinja2.TemplateError as error:
            raise _failed(error) from error
        except _FAILURES as error:
            raise _failed(error) from error
        return "".join(pieces)

    @cached_property
    def _compiled(self) -> tuple[TemplateEnvironment, jinja2.Template, bool]:
        """The environment, the template in it, and whether it goes through parts of content by itself."""
        import jinja2

        from inference_pio.processing._metering import MeteringTransformer, iterates_content
        from inference_pio.processing._sandbox import TemplateEnvironment

        environment = TemplateEnvironment(self._limits)
        try:
            tree = environment.parse(self.source)
            keeps_parts = iterates_content(tree)
            MeteringTransformer().visit(tree)
            return environment, environment.from_string(tree), keeps_parts
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template is wrong in line {error.lineno}: {_one_line(error.message)}"
            ) from None
        except jinja2.TemplateError as error:
            raise _failed(error) from error
        except (MemoryError, RecursionError, SyntaxError) as error:  # what Python's compiler makes of deep nesting
            raise TemplateError("the chat template cannot be compiled: it is nested too deeply") from error
        except _FAILURES as error:
            raise TemplateError(f"the chat template cannot be compiled: {_one_line(error)}") from error


def _failed(error: Exception) -> TemplateError:
    kind = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
    return TemplateError(f"the chat template fails: {kind}{_one_line(error)}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:500]
