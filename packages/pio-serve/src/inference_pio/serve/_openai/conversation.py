"""From a conversation on the wire to the tokens of a prompt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from inference_pio.serve._errors import invalid
from inference_pio.serve._openai.sampling import check_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._openai.chat_types import ChatMessage, FunctionText, Tool
    from inference_pio.serve._settings import ServeSettings

INLINE_CHARS = 8192
"""Prompts up to this long are rendered and tokenized at once; longer ones in a thread, so that others go on."""


class Prompt(NamedTuple):
    """A prompt as the engine takes it, and as the model's parsers do."""

    token_ids: list[int]
    text: str


async def render(
    model: ServedModel,
    settings: ServeSettings,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[Tool] | None,
    template_kwargs: Mapping[str, Any] | None,
    add_generation_prompt: bool = True,
) -> Prompt:
    """The prompt of a conversation.

    Args:
        model: Whose template and tokenizer.
        settings: Bounds, and the variables of the template that may be set.
        messages: The conversation.
        tools: Tools that the template is to describe.
        template_kwargs: Variables of the template.
        add_generation_prompt: End with the header of the assistant's turn.

    Raises:
        ApiError: Beyond the bounds, or a variable that may not be set.
        TemplateError: The template refuses the conversation.
    """
    variables = _checked_variables(template_kwargs or {}, settings.template_kwargs)
    conversation = _checked_messages(messages, settings.bounds.messages)
    described = None if not tools else _checked_tools(tools, settings)
    tokenizer = model.llm.get_tokenizer()

    def make() -> Prompt:
        text = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=add_generation_prompt, tools=described, tokenize=False, **variables
        )
        return Prompt(tokenizer.encode(text, add_special_tokens=False), text)

    return await beside(make, sum(len(str(message.get("content") or "")) for message in conversation))


async def beside(make: Callable[[], Prompt], chars: int) -> Prompt:
    """What ``make`` makes; in a thread where there is much to do."""
    return make() if chars <= INLINE_CHARS else await asyncio.to_thread(make)


def _checked_variables(given: Mapping[str, Any], allowed: frozenset[str]) -> Mapping[str, Any]:
    for name in given:
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "nothing"
            raise invalid(
                f"chat_template_kwargs may not set {name!r:.80}; they may set {known}",
                f"chat_template_kwargs.{name:.80}",
            )
    return given


def _checked_messages(messages: Sequence[ChatMessage], most: int) -> list[dict[str, object]]:
    if not messages:
        raise invalid("messages must hold at least one message", "messages")
    if len(messages) > most:
        raise invalid(f"messages has {len(messages)} entries; the limit is {most}", "messages")
    return [_as_template_sees(message, place) for place, message in enumerate(messages)]


def _as_template_sees(message: ChatMessage, place: int) -> dict[str, object]:
    # "developer" is OpenAI's newer word for what open models' templates call "system".
    made: dict[str, object] = {"role": "system" if message.role == "developer" else message.role}
    if isinstance(message.content, list):
        for index, part in enumerate(message.content):
            if part.type != "text" or part.text is None:
                where = f"messages[{place}].content[{index}]"
                raise invalid(f"{where}: this model takes text parts only, got type {part.type!r:.40}", where)
        made["content"] = [{"type": "text", "text": part.text} for part in message.content]
    else:
        made["content"] = message.content or ""  # a call alone has none, and simple templates add it to a text
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            made[name] = value
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": call.type, "function": _function(call.function)} for call in message.tool_calls
        ]
    return made


def _function(function: FunctionText) -> dict[str, object]:
    """A call as templates write it: its arguments are an object, unless they are none, as a model may have written."""
    arguments: object = function.arguments
    if isinstance(arguments, str):
        try:
            parsed = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {"name": function.name, "arguments": arguments}


def _checked_tools(tools: Sequence[Tool], settings: ServeSettings) -> list[dict[str, object]]:
    if len(tools) > settings.bounds.tools:
        raise invalid(f"tools has {len(tools)} entries; the limit is {settings.bounds.tools}", "tools")
    described: list[dict[str, object]] = [msgspec.to_builtins(tool) for tool in tools]
    check_schema(described, settings.bounds, "tools")
    return described
