"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's shape over the chat pipeline."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from inference_pio.processing import TextDelta
from inference_pio.serve._anthropic import events
from inference_pio.serve._anthropic.message_input import CHAT_NAMES, as_chat_request
from inference_pio.serve._anthropic.message_types import (
    CountRequest,
    Message,
    MessageRequest,
    MessageUsage,
    TextBlock,
    ThinkingBlock,
    TokenCount,
    ToolUseBlock,
)
from inference_pio.serve._errors import named_as
from inference_pio.serve._json import json_response
from inference_pio.serve._openai.chat import begin
from inference_pio.serve._openai.choice_reader import ReasoningText
from inference_pio.serve._openai.conversation import render
from inference_pio.serve._sse import EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp

    from inference_pio.interfaces import TokenEvent
    from inference_pio.serve._call import Call
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._openai.chat import ChatAnswer
    from inference_pio.serve._openai.choice_reader import Piece


async def messages(call: Call) -> ASGIApp:
    """Answer a conversation.

    Raises:
        ApiError: The request cannot be served.
        PioError: The same, in the core's words.
    """
    request = call.read(MessageRequest)
    model = await call.model(request.model)
    chat = as_chat_request(request)
    with named_as(CHAT_NAMES):
        answer = MessageAnswer(await begin(call, model, chat), model)
    if request.stream:
        return EventStream(
            answer.frames(),
            keep_alive_s=call.server.settings.keep_alive_s,
            end=b"",
            describe=partial(events.error_event, request_id=call.request_id),
        )
    return json_response(await answer.whole())


async def count_tokens(call: Call) -> ASGIApp:
    """How many tokens a conversation has, as the model would see it.

    Raises:
        ApiError: It holds what a conversation cannot.
        PioError: The same, in the core's words.
    """
    request = call.read(CountRequest)
    model = await call.model(request.model)
    chat = as_chat_request(request)
    with named_as(CHAT_NAMES):
        prompt = await render(
            model,
            call.server.settings,
            chat.messages,
            tools=None if chat.tool_choice == "none" else chat.tools,
            template_kwargs=chat.chat_template_kwargs,
        )
    return json_response(TokenCount(len(prompt.token_ids)))


class MessageAnswer:
    """A message as it comes. Read once.

    Args:
        answer: Brings its pieces.
        model: Who answers.
    """

    def __init__(self, answer: ChatAnswer, model: ServedModel) -> None:
        self._answer = answer
        self._message = Message(id=f"msg_{secrets.token_hex(12)}", model=model.name, content=[], usage=self._usage())
        self._arguments: list[str] = []
        self._broken: set[int] = set()
        self._is_open = False

    async def whole(self) -> Message:
        """All of it. A call that was cut off is left out, for what it has is no input.

        Raises:
            PioError: The request failed.
            ApiError: The server stopped first.
        """
        async for _ in self._events():
            pass
        content = self._message.content
        self._message.content = [block for place, block in enumerate(content) if place not in self._broken]
        return self._message

    async def frames(self) -> AsyncIterator[bytes]:
        """Events as they come.

        Raises:
            PioError: The request failed.
            ApiError: The server stopped first.
        """
        async for event in self._events():
            yield events.event_frame(event)

    async def _events(self) -> AsyncIterator[events.Event]:
        message = self._message
        has_begun = False
        async for token, pieces, finish_reason in self._answer.pieces():
            message.usage = self._usage()
            if not has_begun:  # only now is it known how much of the conversation was in the cache
                has_begun = True
                yield events.MessageStart(message)
            for piece in pieces:
                for event in self._add(piece):
                    yield event
            if finish_reason is not None:
                message.stop_reason = _stop_reason(token, finish_reason)
                message.stop_sequence = token.stop_reason if isinstance(token.stop_reason, str) else None
        for event in self._close():
            yield event
        assert message.stop_reason is not None
        yield events.MessageDelta(events.Ending(message.stop_reason, message.stop_sequence), message.usage)
        yield events.MessageStop()

    def _add(self, piece: Piece) -> Iterator[events.Event]:
        """Take a piece into the block that it belongs to, beginning one where it needs another."""
        content = self._message.content
        last = content[-1] if self._is_open else None
        match piece:
            case TextDelta(text):
                if not isinstance(last, TextBlock):
                    yield from self._open(last := TextBlock())
                last.text += text
                yield events.BlockDelta(len(content) - 1, events.TextPiece(text))
            case ReasoningText(text):
                if not isinstance(last, ThinkingBlock):
                    yield from self._open(last := ThinkingBlock())
                last.thinking += text
                yield events.BlockDelta(len(content) - 1, events.ThinkingPiece(text))
            case _:
                if piece.name is not None:
                    yield from self._open(ToolUseBlock(f"toolu_{secrets.token_hex(12)}", piece.name))
                if piece.arguments:
                    self._arguments.append(piece.arguments)
                    yield events.BlockDelta(len(content) - 1, events.InputPiece(piece.arguments))

    def _open(self, block: TextBlock | ThinkingBlock | ToolUseBlock) -> Iterator[events.Event]:
        yield from self._close()
        self._is_open = True
        self._message.content.append(block)
        yield events.BlockStart(len(self._message.content) - 1, block)

    def _close(self) -> Iterator[events.Event]:
        """End the block that is open, if one is."""
        if not self._is_open:
            return
        self._is_open = False
        content = self._message.content
        yield events.BlockStop(len(content) - 1)
        block = content[-1]
        if not isinstance(block, ToolUseBlock):
            return
        arguments, self._arguments = "".join(self._arguments), []
        try:
            block.input = msgspec.json.decode(arguments or "{}", type=dict)
        except msgspec.DecodeError:  # a bound or a stop string came first, or it became text after all
            self._broken.add(len(content) - 1)

    def _usage(self) -> MessageUsage:
        used = self._answer.usage()
        cached = used.prompt_tokens_details.cached_tokens
        return MessageUsage(
            input_tokens=used.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=used.completion_tokens,
        )


def _stop_reason(token: TokenEvent, finish_reason: str) -> str:
    if isinstance(token.stop_reason, str):
        return "stop_sequence"
    return {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}[finish_reason]
