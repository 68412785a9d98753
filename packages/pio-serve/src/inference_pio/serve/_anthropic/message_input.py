"""From the request for a message to that of the same answer as a chat completion."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import msgspec

from inference_pio.serve._anthropic.message_types import MessageRequest
from inference_pio.serve._errors import invalid
from inference_pio.serve._openai.chat_types import (
    ChatMessage,
    ChatRequest,
    ChosenFunction,
    ContentPart,
    FunctionText,
    MessageCall,
    Tool,
    ToolChoice,
    ToolFunction,
)
from inference_pio.serve._openai.sampling_fields import JsonSchemaFormat, NamedSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.serve._anthropic.message_types import (
        CountRequest,
        InputBlock,
        InputMessage,
        MessageTool,
        MessageToolChoice,
        ResultPart,
    )

CHAT_NAMES = MappingProxyType(
    {
        "max_completion_tokens": "max_tokens",
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        "reasoning_effort": "output_config.effort",
        "chat_template_kwargs": "thinking",
    }
)
"""What the parameters of chat completions are called here."""


def as_chat_request(request: CountRequest) -> ChatRequest:
    """The same, in the terms of chat completions.

    Raises:
        ApiError: It holds what a conversation cannot.
    """
    options = request.output_config
    form = None if options is None else options.format
    choice = request.tool_choice
    chat = ChatRequest(
        model=request.model,
        messages=_conversation(request),
        tools=None if request.tools is None else [_tool(tool) for tool in request.tools],
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=None
        if choice is None or choice.disable_parallel_tool_use is None
        else not choice.disable_parallel_tool_use,
        response_format=None if form is None else JsonSchemaFormat(NamedSchema("output", form.schema)),
        reasoning_effort=None if options is None else options.effort,
        chat_template_kwargs=None
        if request.thinking is None
        else {"enable_thinking": request.thinking.type != "disabled"},
    )
    if not isinstance(request, MessageRequest):
        return chat
    return msgspec.structs.replace(
        chat,
        max_completion_tokens=request.max_tokens,
        stop=request.stop_sequences,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
    )


def _tool(tool: MessageTool) -> Tool:
    return Tool(ToolFunction(tool.name, tool.description, tool.input_schema, tool.strict))


def _choice(choice: MessageToolChoice) -> Literal["none", "auto", "required"] | ToolChoice:
    match choice.type:
        case "any":
            return "required"
        case "tool":
            if choice.name is None:
                raise invalid("tool_choice: type 'tool' needs 'name'", "tool_choice.name", code="missing_parameter")
            return ToolChoice(ChosenFunction(choice.name))
    return choice.type


def _conversation(request: CountRequest) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    if request.system is not None:
        messages.append(ChatMessage("system", _texts(request.system, "system")))
    if not request.messages:
        raise invalid("messages must hold at least one message", "messages")
    if request.messages[-1].role == "assistant":
        raise invalid(
            "the last of the messages must not be the assistant's: an answer that has begun cannot be continued",
            "messages",
            code="unsupported",
        )
    for place, message in enumerate(request.messages):
        where = f"messages[{place}]"
        if message.role == "assistant":
            messages.append(_assistant(message, where))
        else:
            messages += _others(message, where)
    return messages


def _assistant(message: InputMessage, where: str) -> ChatMessage:
    if isinstance(message.content, str):
        return ChatMessage("assistant", message.content)
    texts: list[ContentPart] = []
    thoughts: list[str] = []
    calls: list[MessageCall] = []
    for place, block in enumerate(message.content):
        at = f"{where}.content[{place}]"
        match block.type:
            case "thinking":
                thoughts.append(block.thinking or "")
            case "tool_use":
                if block.name is None or block.id is None:
                    raise invalid(f"{at}: a tool_use needs 'name' and 'id'", at, code="missing_parameter")
                calls.append(MessageCall(FunctionText(block.name, block.input or {}), block.id))
            case _:
                texts.append(_text(block, at))
    return ChatMessage(
        "assistant", texts or None, tool_calls=calls or None, reasoning_content="".join(thoughts) or None
    )


def _others(message: InputMessage, where: str) -> list[ChatMessage]:
    """A turn of the user: what tools answered are messages of their own, in the order in which all of it was said."""
    role: Literal["user", "system"] = "system" if message.role == "system" else "user"
    if isinstance(message.content, str):
        return [ChatMessage(role, message.content)]
    made: list[ChatMessage] = []
    texts: list[ContentPart] = []
    for place, block in enumerate(message.content):
        at = f"{where}.content[{place}]"
        if block.type != "tool_result":
            texts.append(_text(block, at))
            continue
        if block.tool_use_id is None:
            raise invalid(f"{at}: a tool_result needs 'tool_use_id'", at, code="missing_parameter")
        if texts:
            made.append(ChatMessage(role, texts))
            texts = []
        made.append(ChatMessage("tool", _texts(block.content or "", at), tool_call_id=block.tool_use_id))
    if texts or not made:
        made.append(ChatMessage(role, texts))
    return made


def _texts(content: str | Sequence[InputBlock | ResultPart], where: str) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    return [_text(part, f"{where}[{place}]") for place, part in enumerate(content)]


def _text(part: InputBlock | ResultPart, where: str) -> ContentPart:
    if part.type != "text" or part.text is None:
        raise invalid(f"{where}: this model takes text here, got type {part.type!r:.40}", where)
    return ContentPart("text", part.text)
