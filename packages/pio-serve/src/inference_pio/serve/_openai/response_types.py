"""OpenAI's responses on the wire: what is asked, and what is answered."""

from typing import Any, Literal

import msgspec

from inference_pio.serve._openai.bounded import AtLeastOne, MinP, Seed, Temperature, TopK, TopLogprobs, TopP
from inference_pio.serve._openai.chat_types import FunctionName, PositionLogprob


class InputPart(msgspec.Struct):
    """A part of an item.

    Attributes:
        type: ``"input_text"``, ``"output_text"``, or of another item's own.
        text: Its text.
    """

    type: str
    text: str | None = None


class InputItem(msgspec.Struct):
    """One item of a conversation. Clients send back what servers answered, so keys beyond these are left aside.

    Attributes:
        type: What it is.
        role: Who speaks, of a message.
        content: Of a message, or the reasoning of the assistant.
        call_id: Which call it is, or answers.
        name: The function that was called.
        arguments: What with, as JSON text.
        output: What a function answered.
        summary: Of the reasoning of the assistant.
    """

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None


class ResponseTool(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A function that the model may call.

    Attributes:
        type: ``"function"``.
        name: Its name.
        description: What it does.
        parameters: JSON schema of its arguments.
        strict: Whether arguments must follow the schema.
    """

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolChoice(msgspec.Struct):
    """The function that must be called.

    Attributes:
        name: Its name.
        type: ``"function"``.
    """

    name: str
    type: Literal["function"] = "function"


class PlainTextForm(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectForm(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchemaForm(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that follows a schema.

    Attributes:
        name: What the schema is called.
        schema: The schema.
        description: What it is for.
        strict: Accepted; every schema is followed strictly.
    """

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What the text is to be like.

    Attributes:
        format: Its form.
        verbosity: Accepted without effect.
    """

    format: PlainTextForm | JsonObjectForm | JsonSchemaForm | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How to reason.

    Attributes:
        effort: Handed to the chat template.
        summary: Accepted without effect: reasoning is shown as it is.
        generate_summary: Accepted without effect.
    """

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How to stream.

    Attributes:
        include_obfuscation: Accepted; nothing is obfuscated.
    """

    include_obfuscation: bool | None = None


class ResponseRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/responses``; null is as if the parameter were left out.

    Attributes:
        model: Which model; may be left out where there is one.
        input: The conversation, or the one message of its user.
        instructions: What the system says first.
        max_output_tokens: New tokens at most.
        tools: Functions that the model may call.
        tool_choice: Whether it may or must.
        text: What the text is to be like.
        reasoning: How to reason.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Keep the smallest set of tokens with this probability.
        top_k: Keep the k likeliest tokens.
        min_p: Keep tokens at least this likely relative to the likeliest.
        seed: Makes the text repeatable.
        top_logprobs: With log-probabilities, also those of this many of the likeliest at each place.
        include: ``"message.output_text.logprobs"`` reports log-probabilities; others are accepted without effect.
        stream: Send the response as it comes.
        stream_options: How.
        chat_template_kwargs: Variables of the chat template, of those that the server allows.
        store: Refused when true: nothing is stored.
        previous_response_id: Refused, for the same reason.
        conversation: Refused, for the same reason.
        background: Refused when true, for the same reason.
        truncation: ``"disabled"``; ``"auto"`` is refused: nothing is left out of a conversation unsaid.
        parallel_tool_calls: Whether there may be several calls.
        max_tool_calls: Accepted without effect: the server calls nothing itself.
        metadata: Comes back with the response.
        user: Accepted without effect, as the following.
        service_tier: Accepted without effect.
        safety_identifier: Accepted without effect.
        prompt_cache_key: Accepted without effect: prompts are shared in the cache by what they hold.
        prompt_cache_retention: Accepted without effect.
    """

    model: str | None = None
    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: AtLeastOne | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class OutputText(msgspec.Struct, kw_only=True):
    """A text of an answer.

    Attributes:
        type: ``"output_text"``.
        text: The text.
        annotations: None.
        logprobs: Of its tokens, if they were asked for.
    """

    type: str = "output_text"
    text: str = ""
    annotations: list[Any] = msgspec.field(default_factory=list)
    logprobs: list[PositionLogprob] = msgspec.field(default_factory=list)


class ReasoningContent(msgspec.Struct, kw_only=True):
    """A text of reasoning.

    Attributes:
        type: ``"reasoning_text"``.
        text: The text.
    """

    type: str = "reasoning_text"
    text: str = ""


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """A text of the assistant.

    Attributes:
        id: Of the item.
        role: ``"assistant"``.
        status: ``"in_progress"``, ``"completed"`` or ``"incomplete"``.
        content: One text, once it has begun.
    """

    id: str
    role: str = "assistant"
    status: str = "in_progress"
    content: list[OutputText] = msgspec.field(default_factory=list)


class OutputReasoning(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """The reasoning before an answer.

    Attributes:
        id: Of the item.
        status: As a message's.
        summary: None: reasoning is shown as it is.
        content: One text, once it has begun.
    """

    id: str
    status: str = "in_progress"
    summary: list[Any] = msgspec.field(default_factory=list)
    content: list[ReasoningContent] = msgspec.field(default_factory=list)


class OutputCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function.

    Attributes:
        id: Of the item.
        status: As a message's.
        call_id: What the function's answer refers to.
        name: Which function.
        arguments: JSON text.
    """

    id: str
    status: str = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


class InputDetails(msgspec.Struct):
    """Of the tokens of the input.

    Attributes:
        cached_tokens: Those that were found in the cache.
        cache_write_tokens: 0: keeping tokens in the cache is not counted.
    """

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """Of the tokens of the output.

    Attributes:
        reasoning_tokens: Those of its reasoning.
    """

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Tokens of a response.

    Attributes:
        input_tokens: Of the conversation.
        input_tokens_details: More about them.
        output_tokens: Of the answer.
        output_tokens_details: More about them.
        total_tokens: Of both.
    """

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct):
    """Why a response failed.

    Attributes:
        code: What programs tell errors apart by.
        message: What went wrong.
    """

    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    """Why a response is incomplete.

    Attributes:
        reason: ``"max_output_tokens"``.
    """

    reason: str


class Response(msgspec.Struct, kw_only=True):
    """The response.

    Attributes:
        id: Of the response; nothing is stored under it.
        object: ``"response"``.
        created_at: When it was asked for, in seconds since 1970.
        completed_at: When it was complete.
        status: ``"in_progress"``, ``"completed"``, ``"incomplete"`` or ``"failed"``.
        background: False.
        error: Why it failed.
        incomplete_details: Why it is incomplete.
        instructions: As asked.
        max_output_tokens: As asked.
        metadata: As asked.
        model: Who answers.
        output: The answer.
        parallel_tool_calls: As asked.
        previous_response_id: None.
        reasoning: As asked.
        store: False.
        temperature: As used.
        text: As asked.
        tool_choice: As asked.
        tools: As asked.
        top_p: As used.
        truncation: ``"disabled"``.
        usage: Once it has ended.
        user: As asked.
    """

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[OutputMessage | OutputReasoning | OutputCall] = msgspec.field(default_factory=list)
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: ReasoningOptions
    store: bool = False
    temperature: float
    text: TextOptions
    tool_choice: str | ResponseToolChoice
    tools: list[ResponseTool]
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
