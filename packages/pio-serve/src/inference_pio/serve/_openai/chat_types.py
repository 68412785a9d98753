"""Chat completions on the wire."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from inference_pio.serve._openai.bounded import AtLeastOne, TopLogprobs, told
from inference_pio.serve._openai.sampling_fields import SamplingFields
from inference_pio.serve._openai.usage import Usage

FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class FunctionText(msgspec.Struct):
    """A call's function.

    Attributes:
        name: Which.
        arguments: JSON text; objects are taken too.
    """

    name: str
    arguments: str | dict[str, Any] = "{}"


class MessageCall(msgspec.Struct):
    """A call that the assistant made earlier.

    Attributes:
        function: What it called.
        id: What the tool's answer refers to.
        type: ``"function"``.
    """

    function: FunctionText
    id: str | None = None
    type: str = "function"


class ContentPart(msgspec.Struct):
    """A part of a message.

    Attributes:
        type: ``"text"``; models that see take images in addition.
        text: Its text.
    """

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """One message. Clients send back what servers answered, so keys beyond these are left aside.

    Attributes:
        role: Who speaks.
        content: Text or parts.
        name: Of the speaker or the tool.
        tool_calls: Calls that the assistant made.
        tool_call_id: Which call a tool answers.
        reasoning_content: The assistant's reasoning.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ToolFunction(msgspec.Struct, omit_defaults=True):
    """What a tool is called and takes.

    Attributes:
        name: Its name.
        description: What it does.
        parameters: JSON schema of its arguments.
        strict: Whether arguments must follow the schema.
    """

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool that the model may call.

    Attributes:
        function: Its description.
        type: ``"function"``.
    """

    function: ToolFunction
    type: Literal["function"] = "function"


class ChosenFunction(msgspec.Struct):
    """The function of a choice.

    Attributes:
        name: Its name.
    """

    name: str


class ToolChoice(msgspec.Struct):
    """The tool that must be called.

    Attributes:
        function: Which.
        type: ``"function"``.
    """

    function: ChosenFunction
    type: Literal["function"] = "function"


class ChatRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/chat/completions``.

    Attributes:
        messages: The conversation.
        max_completion_tokens: New tokens at most; the newer name of ``max_tokens``.
        logprobs: Report the log-probability of each token.
        top_logprobs: And of this many of the likeliest at its place.
        tools: Tools that the model may call.
        tool_choice: Whether it may or must.
        parallel_tool_calls: Whether there may be several calls.
        chat_template_kwargs: Variables of the chat template, of those that the server allows.
        add_generation_prompt: End the prompt with the header of the assistant's turn.
        reasoning_effort: Handed to the chat template.
        verbosity: Accepted without effect.
        modalities: ``["text"]``.
    """

    messages: Annotated[list[ChatMessage], told(minItems=1)]
    max_completion_tokens: AtLeastOne | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[Literal["text"]] | None = None


class TokenLogprob(msgspec.Struct):
    """One candidate.

    Attributes:
        token: Its text.
        logprob: Natural log of its probability.
        bytes: Its UTF-8, which may be a part of a character.
    """

    token: str
    logprob: float
    bytes: list[int]


class PositionLogprob(msgspec.Struct):
    """A chosen token and others at its place.

    Attributes:
        token: Its text.
        logprob: Natural log of its probability.
        bytes: Its UTF-8.
        top_logprobs: The likeliest, best first.
    """

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of an answer.

    Attributes:
        content: By token.
        refusal: None.
    """

    content: list[PositionLogprob]
    refusal: None = None


class CallFunction(msgspec.Struct):
    """What is called.

    Attributes:
        name: Which function.
        arguments: JSON text.
    """

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call that the model makes.

    Attributes:
        id: What the tool's answer refers to.
        function: What is called.
        type: ``"function"``.
    """

    id: str
    function: CallFunction
    type: str = "function"


class AnswerMessage(msgspec.Struct, kw_only=True):
    """The answer.

    Attributes:
        role: ``"assistant"``.
        content: Its text; None where there are calls alone.
        refusal: None.
        reasoning_content: What came before it, of models that show it.
        tool_calls: Calls that it makes.
    """

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One of the answers.

    Attributes:
        index: Which.
        message: The answer.
        logprobs: If they were asked for.
        finish_reason: Why it ended.
    """

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The reply.

    Attributes:
        id: Of the reply.
        object: ``"chat.completion"``.
        created: When it was asked for, in seconds since 1970.
        model: Who answered.
        choices: The answers.
        usage: Tokens.
    """

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(msgspec.Struct, kw_only=True):
    """A piece of a call's function.

    Attributes:
        name: Which function, in the first piece.
        arguments: More JSON text.
    """

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallPiece(msgspec.Struct, kw_only=True):
    """A piece of a call.

    Attributes:
        index: Which call.
        id: In the first piece.
        type: In the first piece.
        function: More of it.
    """

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta


class Delta(msgspec.Struct, kw_only=True):
    """A piece of an answer.

    Attributes:
        role: In the first piece.
        content: More text.
        reasoning_content: More reasoning.
        tool_calls: More of a call.
    """

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallPiece] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """A piece of one of the answers.

    Attributes:
        index: Which.
        delta: The piece.
        logprobs: Of its tokens, if they were asked for.
        finish_reason: Why the answer ended; None while it goes on.
    """

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """A piece of a streamed reply.

    Attributes:
        id: Of the reply.
        object: ``"chat.completion.chunk"``.
        created: When it was asked for, in seconds since 1970.
        model: Who answers.
        choices: Pieces; none in the chunk of the usage.
        usage: In the last chunk, where it was asked for; None before.
    """

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
