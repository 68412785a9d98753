"""What a streamed message is made of, in the order in which it may come."""

import msgspec

from inference_pio.serve._anthropic.errors import message_error_body
from inference_pio.serve._anthropic.message_types import Message, MessageUsage, TextBlock, ThinkingBlock, ToolUseBlock
from inference_pio.serve._errors import ApiError
from inference_pio.serve._sse import frame


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """The first.

    Attributes:
        message: Without content yet.
    """

    message: Message


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """A part begins.

    Attributes:
        index: Which.
        content_block: Empty yet.
    """

    index: int
    content_block: TextBlock | ThinkingBlock | ToolUseBlock


class TextPiece(msgspec.Struct, tag_field="type", tag="text_delta"):
    """More text.

    Attributes:
        text: The text.
    """

    text: str


class ThinkingPiece(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """More reasoning.

    Attributes:
        thinking: The text.
    """

    thinking: str


class InputPiece(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """More of the input of a call.

    Attributes:
        partial_json: JSON text.
    """

    partial_json: str


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """More of a part.

    Attributes:
        index: Which.
        delta: The piece.
    """

    index: int
    delta: TextPiece | ThinkingPiece | InputPiece


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A part has ended.

    Attributes:
        index: Which.
    """

    index: int


class Ending(msgspec.Struct):
    """How a message ended.

    Attributes:
        stop_reason: As in the message.
        stop_sequence: As in the message.
    """

    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The last but one.

    Attributes:
        delta: How the message ended.
        usage: All of its tokens.
    """

    delta: Ending
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The last."""


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


def event_frame(event: Event) -> bytes:
    """``event`` as the stream spells it."""
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str)
    return b"event: " + tag.encode() + b"\n" + frame(event)


def error_event(error: ApiError, request_id: str) -> bytes:
    """``error`` as the event that ends a stream."""
    return b"event: error\n" + frame(message_error_body(error, request_id))
