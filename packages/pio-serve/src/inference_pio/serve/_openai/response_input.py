"""From the request for a response to that of the same answer as a chat completion."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

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
from inference_pio.serve._openai.response_types import InputPart, JsonObjectForm, JsonSchemaForm, ResponseToolChoice
from inference_pio.serve._openai.sampling_fields import JsonObjectFormat, JsonSchemaFormat, NamedSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.serve._openai.response_types import InputItem, ResponseRequest, ResponseTool

LOGPROBS = "message.output_text.logprobs"
CHAT_NAMES = MappingProxyType(
    {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "logprobs": "top_logprobs",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
    }
)
"""What the parameters of chat completions are called here."""
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})


def as_chat_request(request: ResponseRequest) -> ChatRequest:
    """The same, in the terms of chat completions.

    Raises:
        ApiError: It needs something to be stored, or what a conversation cannot hold.
    """
    _refuse_state(request)
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise invalid(f"max_output_tokens must be at least 1, got {request.max_output_tokens}", "max_output_tokens")
    options = request.text
    asked = None if options is None else options.format
    form: JsonObjectFormat | JsonSchemaFormat | None = None
    if isinstance(asked, JsonObjectForm):
        form = JsonObjectFormat()
    elif isinstance(asked, JsonSchemaForm):
        form = JsonSchemaFormat(NamedSchema(asked.name, asked.schema))
    choice = request.tool_choice
    wants_logprobs = wants_logprobs_of(request)
    if request.top_logprobs and not wants_logprobs:
        raise invalid(f"top_logprobs needs {LOGPROBS!r} in 'include'", "top_logprobs")
    return ChatRequest(
        model=request.model,
        messages=_conversation(request),
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        logprobs=wants_logprobs,
        top_logprobs=request.top_logprobs if wants_logprobs else None,
        tools=None if request.tools is None else [_tool(tool) for tool in request.tools],
        tool_choice=ToolChoice(ChosenFunction(choice.name)) if isinstance(choice, ResponseToolChoice) else choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=form,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        chat_template_kwargs=request.chat_template_kwargs,
    )


def wants_logprobs_of(request: ResponseRequest) -> bool:
    """Whether log-probabilities are to be reported."""
    return LOGPROBS in (request.include or ())


def _refuse_state(request: ResponseRequest) -> None:
    for name, asks in (
        ("store", bool(request.store)),
        ("previous_response_id", request.previous_response_id is not None),
        ("conversation", request.conversation is not None),
        ("background", bool(request.background)),
    ):
        if asks:
            raise invalid(
                f"{name} is not supported: this server stores no responses; send the whole conversation as 'input'",
                name,
                code="unsupported",
            )
    if request.truncation == "auto":
        raise invalid(
            "truncation 'auto' is not supported: shorten the conversation, or set 'disabled'",
            "truncation",
            code="unsupported",
        )


def _tool(tool: ResponseTool) -> Tool:
    return Tool(ToolFunction(tool.name, tool.description, tool.parameters, tool.strict))


def _conversation(request: ResponseRequest) -> list[ChatMessage]:
    messages = [] if request.instructions is None else [ChatMessage("system", request.instructions)]
    if isinstance(request.input, str):
        return [*messages, ChatMessage("user", request.input)]
    if not request.input:
        raise invalid("input must hold at least one item", "input")
    for place, item in enumerate(request.input):
        _add(messages, item, f"input[{place}]")
    return messages


def _add(messages: list[ChatMessage], item: InputItem, where: str) -> None:
    """Append ``item``; reasoning, text and calls that follow each other are one message of the assistant."""
    match item.type:
        case "message":
            if item.role is None or item.content is None:
                raise invalid(f"{where}: a message needs 'role' and 'content'", where, code="missing_parameter")
            content = _parts(item.content, f"{where}.content")
            if item.role != "assistant":
                messages.append(ChatMessage(item.role, content))
            elif (open_one := _open_assistant(messages)) is not None and open_one.content is None:
                open_one.content = content
            else:
                messages.append(ChatMessage("assistant", content))
        case "reasoning":
            parts = _parts(item.content or item.summary or "", where)
            text = parts if isinstance(parts, str) else "".join(part.text or "" for part in parts)
            messages.append(ChatMessage("assistant", reasoning_content=text))
        case "function_call":
            if item.name is None or item.call_id is None:
                raise invalid(f"{where}: a call needs 'name' and 'call_id'", where, code="missing_parameter")
            assistant = _open_assistant(messages)
            if assistant is None:
                assistant = ChatMessage("assistant")
                messages.append(assistant)
            call = MessageCall(FunctionText(item.name, item.arguments or "{}"), item.call_id)
            assistant.tool_calls = [*(assistant.tool_calls or ()), call]
        case "function_call_output":
            if item.call_id is None or item.output is None:
                raise invalid(f"{where}: an output needs 'call_id' and 'output'", where, code="missing_parameter")
            messages.append(ChatMessage("tool", _parts(item.output, f"{where}.output"), tool_call_id=item.call_id))


def _open_assistant(messages: Sequence[ChatMessage]) -> ChatMessage | None:
    return messages[-1] if messages and messages[-1].role == "assistant" else None


def _parts(content: str | list[InputPart], where: str) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    for place, part in enumerate(content):
        if part.type not in _TEXT_PARTS or part.text is None:
            at = f"{where}[{place}]"
            raise invalid(f"{at}: this model takes text parts only, got type {part.type!r:.40}", at)
    return [ContentPart("text", part.text) for part in content]
