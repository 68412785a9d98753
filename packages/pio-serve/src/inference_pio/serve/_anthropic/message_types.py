"""Anthropic's messages on the wire: what is asked, and what is answered."""

from typing import Any, Literal

import msgspec

from inference_pio.serve._openai.bounded import AtLeastOne, Seed, StopStrings, Temperature, TopK, TopP
from inference_pio.serve._openai.chat_types import FunctionName


class ResultPart(msgspec.Struct):
    """A part of what a tool answered.

    Attributes:
        type: ``"text"``.
        text: Its text.
    """

    type: str
    text: str | None = None


class InputBlock(msgspec.Struct):
    """A part of a message. Clients send back what servers answered, so keys beyond these are left aside.

    Attributes:
        type: ``"text"``, ``"thinking"``, ``"tool_use"`` or ``"tool_result"``.
        text: Of a text.
        thinking: Of reasoning.
        id: Of a call.
        name: The tool that is called.
        input: What with.
        tool_use_id: Which call is answered.
        content: The answer to a call.
        is_error: Whether the call failed; what the tool says of that is its content.
    """

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None


class InputMessage(msgspec.Struct):
    """One turn.

    Attributes:
        role: Whose.
        content: Text, or parts.
    """

    role: Literal["user", "assistant", "system"]
    content: str | list[InputBlock]


class MessageTool(msgspec.Struct, kw_only=True):
    """A tool that the model may call. Keys beyond these are hints for other servers and left aside.

    Attributes:
        name: Its name.
        input_schema: JSON schema of its input.
        description: What it does.
        type: ``"custom"``; the tools that Anthropic runs itself are refused.
        strict: Whether the input must follow the schema.
    """

    name: FunctionName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None


class MessageToolChoice(msgspec.Struct):
    """Whether tools may or must be called.

    Attributes:
        type: ``"auto"``, ``"any"``, ``"tool"`` or ``"none"``.
        name: Which, for ``"tool"``.
        disable_parallel_tool_use: At most one call.
    """

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingOptions(msgspec.Struct):
    """Whether to reason first, where the chat template leaves the choice.

    Attributes:
        type: ``"enabled"``, ``"adaptive"`` or ``"disabled"``.
        budget_tokens: Accepted without effect.
    """

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None


class OutputForm(msgspec.Struct, forbid_unknown_fields=True):
    """A form that the text must have.

    Attributes:
        schema: A JSON schema.
        type: ``"json_schema"``.
    """

    schema: dict[str, Any]
    type: Literal["json_schema"]


class OutputOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What the text is to be like.

    Attributes:
        format: Its form.
        effort: Handed to the chat template.
    """

    format: OutputForm | None = None
    effort: str | None = None


class CountRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/messages/count_tokens``; null is as if the parameter were left out.

    Attributes:
        model: Which model; may be left out where there is one.
        messages: The conversation.
        system: What comes before it.
        tools: Tools that the model may call.
        tool_choice: Whether it may or must.
        thinking: Whether to reason first.
        output_config: What the text is to be like.
        cache_control: Accepted without effect, as in every part: prompts are shared in the cache by what they hold.
    """

    model: str | None = None
    messages: list[InputMessage]
    system: str | list[InputBlock] | None = None
    tools: list[MessageTool] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: ThinkingOptions | None = None
    output_config: OutputOptions | None = None
    cache_control: dict[str, Any] | None = None


class MessageRequest(CountRequest, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/messages``.

    Attributes:
        max_tokens: New tokens at most.
        stop_sequences: Strings that end the text; they are not part of it.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Keep the smallest set of tokens with this probability.
        top_k: Keep the k likeliest tokens.
        seed: Makes the text repeatable.
        stream: Send the message as it comes.
        metadata: Accepted without effect.
        service_tier: Accepted without effect.
    """

    max_tokens: AtLeastOne
    stop_sequences: StopStrings | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """Text.

    Attributes:
        text: The text.
    """

    text: str = ""


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """Reasoning.

    Attributes:
        thinking: The text.
        signature: Empty: reasoning is not signed.
    """

    thinking: str = ""
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call.

    Attributes:
        id: What its answer refers to.
        name: Which tool.
        input: What with; empty where its pieces follow.
    """

    id: str
    name: str
    input: dict[str, Any] = msgspec.field(default_factory=dict)


class MessageUsage(msgspec.Struct, kw_only=True):
    """Tokens of a message.

    Attributes:
        input_tokens: Of the conversation, without those that were found in the cache.
        cache_creation_input_tokens: 0: keeping tokens in the cache is not counted.
        cache_read_input_tokens: Of the conversation, those that were found in the cache.
        output_tokens: Of the answer.
    """

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class Message(msgspec.Struct, kw_only=True):
    """The answer.

    Attributes:
        id: Of the message.
        type: ``"message"``.
        role: ``"assistant"``.
        model: Who answers.
        content: Its parts.
        stop_reason: Why it ended: ``"end_turn"``, ``"max_tokens"``, ``"stop_sequence"`` or ``"tool_use"``.
        stop_sequence: The string that ended it, if one did.
        usage: Tokens.
    """

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct):
    """How long a conversation is.

    Attributes:
        input_tokens: In tokens.
    """

    input_tokens: int
