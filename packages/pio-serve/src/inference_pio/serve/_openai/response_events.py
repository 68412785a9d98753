"""What a streamed response is made of, in the order in which it may come."""

import msgspec

from inference_pio.serve._openai.chat_types import PositionLogprob
from inference_pio.serve._openai.response_types import (
    OutputCall,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningContent,
    Response,
)
from inference_pio.serve._sse import frame


class Event(msgspec.Struct, kw_only=True, tag_field="type"):
    """Any of them.

    Attributes:
        sequence_number: Its place, from 0.
    """

    sequence_number: int = 0


class Created(Event, kw_only=True, tag="response.created"):
    """The first.

    Attributes:
        response: Without output yet.
    """

    response: Response


class InProgress(Event, kw_only=True, tag="response.in_progress"):
    """The second.

    Attributes:
        response: Without output yet.
    """

    response: Response


class ItemAdded(Event, kw_only=True, tag="response.output_item.added"):
    """An item begins.

    Attributes:
        output_index: Which.
        item: Empty yet.
    """

    output_index: int
    item: OutputMessage | OutputReasoning | OutputCall


class PartOfItem(Event, kw_only=True):
    """Something of an item.

    Attributes:
        item_id: Of which item.
        output_index: Which item it is.
    """

    item_id: str
    output_index: int


class PartAdded(PartOfItem, kw_only=True, tag="response.content_part.added"):
    """The text of an item begins.

    Attributes:
        content_index: 0.
        part: Empty yet.
    """

    content_index: int = 0
    part: OutputText | ReasoningContent


class TextDelta(PartOfItem, kw_only=True, tag="response.output_text.delta"):
    """More text.

    Attributes:
        content_index: 0.
        delta: The text.
        logprobs: Of its tokens, if they were asked for.
    """

    content_index: int = 0
    delta: str
    logprobs: list[PositionLogprob]


class TextDone(PartOfItem, kw_only=True, tag="response.output_text.done"):
    """The text has ended.

    Attributes:
        content_index: 0.
        text: All of it.
        logprobs: Of its tokens, if they were asked for.
    """

    content_index: int = 0
    text: str
    logprobs: list[PositionLogprob]


class ReasoningDelta(PartOfItem, kw_only=True, tag="response.reasoning_text.delta"):
    """More reasoning.

    Attributes:
        content_index: 0.
        delta: The text.
    """

    content_index: int = 0
    delta: str


class ReasoningDone(PartOfItem, kw_only=True, tag="response.reasoning_text.done"):
    """The reasoning has ended.

    Attributes:
        content_index: 0.
        text: All of it.
    """

    content_index: int = 0
    text: str


class ArgumentsDelta(PartOfItem, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of the arguments of a call.

    Attributes:
        delta: JSON text.
    """

    delta: str


class ArgumentsDone(PartOfItem, kw_only=True, tag="response.function_call_arguments.done"):
    """The arguments of a call have ended.

    Attributes:
        name: Which function is called.
        arguments: All of their JSON text.
    """

    name: str
    arguments: str


class PartDone(PartOfItem, kw_only=True, tag="response.content_part.done"):
    """The text of an item has ended.

    Attributes:
        content_index: 0.
        part: The text.
    """

    content_index: int = 0
    part: OutputText | ReasoningContent


class ItemDone(Event, kw_only=True, tag="response.output_item.done"):
    """An item has ended.

    Attributes:
        output_index: Which.
        item: All of it.
    """

    output_index: int
    item: OutputMessage | OutputReasoning | OutputCall


class Completed(Event, kw_only=True, tag="response.completed"):
    """The last.

    Attributes:
        response: All of it.
    """

    response: Response


class Incomplete(Event, kw_only=True, tag="response.incomplete"):
    """The last, where a bound cut the answer off.

    Attributes:
        response: What there is.
    """

    response: Response


class Failed(Event, kw_only=True, tag="response.failed"):
    """The last, where something went wrong.

    Attributes:
        response: What there is, and what went wrong.
    """

    response: Response


def event_frame(event: Event) -> bytes:
    """``event`` as the stream spells it."""
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str)
    return b"event: " + tag.encode() + b"\n" + frame(event)
