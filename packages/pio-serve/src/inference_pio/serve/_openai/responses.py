"""``POST /v1/responses``: OpenAI's responses over the same engine as chat completions; nothing is stored."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import msgspec

from inference_pio.processing import TextDelta
from inference_pio.serve._errors import named_as
from inference_pio.serve._json import json_response
from inference_pio.serve._openai import response_events as events
from inference_pio.serve._openai.chat import begin, new_call_id
from inference_pio.serve._openai.choice_reader import ReasoningText
from inference_pio.serve._openai.logprobs import chat_logprob, names_token
from inference_pio.serve._openai.response_input import CHAT_NAMES, as_chat_request, wants_logprobs_of
from inference_pio.serve._openai.response_types import (
    IncompleteDetails,
    InputDetails,
    OutputCall,
    OutputDetails,
    OutputMessage,
    OutputReasoning,
    OutputText,
    PlainTextForm,
    ReasoningContent,
    ReasoningOptions,
    Response,
    ResponseError,
    ResponseRequest,
    ResponseUsage,
    TextOptions,
)
from inference_pio.serve._sse import EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp

    from inference_pio.interfaces import TokenEvent
    from inference_pio.serve._call import Call
    from inference_pio.serve._errors import ApiError
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._openai.chat import ChatAnswer
    from inference_pio.serve._openai.chat_types import PositionLogprob
    from inference_pio.serve._openai.choice_reader import Piece
    from inference_pio.serve._openai.usage import Usage


async def responses(call: Call) -> ASGIApp:
    """Answer a conversation.

    Raises:
        ApiError: The request cannot be served.
        PioError: The same, in the core's words.
    """
    request = call.read(ResponseRequest)
    model = await call.model(request.model)
    chat = as_chat_request(request)
    with named_as(CHAT_NAMES):
        answer = ResponseAnswer(await begin(call, model, chat), model, request)
    if request.stream:
        return EventStream(
            answer.frames(),
            keep_alive_s=call.server.settings.keep_alive_s,
            end=b"",
            describe=answer.failure,
        )
    return json_response(await answer.whole())


class ResponseAnswer:
    """A response as it comes. Read once.

    Args:
        answer: Brings its pieces.
        model: Who answers.
        request: What was asked.
    """

    def __init__(self, answer: ChatAnswer, model: ServedModel, request: ResponseRequest) -> None:
        self._answer = answer
        self._model = model
        self._top = (request.top_logprobs or 0) if wants_logprobs_of(request) else None
        self._response = _opening(model, request)
        self._unsent: list[PositionLogprob] = []
        self._number = 0

    async def whole(self) -> Response:
        """All of it.

        Raises:
            PioError: The request failed.
            ApiError: The server stopped first.
        """
        async for _ in self._events():
            pass
        return self._response

    async def frames(self) -> AsyncIterator[bytes]:
        """Events as they come.

        Raises:
            PioError: The request failed.
            ApiError: The server stopped first.
        """
        async for event in self._events():
            yield self._numbered(event)

    def failure(self, error: ApiError) -> bytes:
        """The last event of a response that failed."""
        self._response.status = "failed"
        self._response.error = ResponseError(error.code or "server_error", error.message)
        return self._numbered(events.Failed(response=self._response))

    def _numbered(self, event: events.Event) -> bytes:
        event.sequence_number = self._number
        self._number += 1
        return events.event_frame(event)

    async def _events(self) -> AsyncIterator[events.Event]:
        yield events.Created(response=self._response)
        yield events.InProgress(response=self._response)
        reason = "stop"
        async for token, pieces, finish_reason in self._answer.pieces():
            self._note_logprob(token)
            for piece in pieces:
                for event in self._add(piece):
                    yield event
            reason = finish_reason or reason
        for event in self._end(cut_off=reason == "length"):
            yield event

    def _note_logprob(self, token: TokenEvent) -> None:
        if self._top is not None and names_token(token):
            self._unsent.append(chat_logprob(token, self._model.llm.get_tokenizer(), self._top))

    def _add(self, piece: Piece) -> Iterator[events.Event]:
        """Take a piece into the item that it belongs to, beginning one where it needs another."""
        output = self._response.output
        last = output[-1] if output and output[-1].status == "in_progress" else None
        match piece:
            case TextDelta(text):
                if not isinstance(last, OutputMessage):
                    yield from self._close("completed")
                    last = OutputMessage(id=f"msg_{secrets.token_hex(12)}")
                    yield from self._open(last)
                logprobs, self._unsent = self._unsent, []
                last.content[0].text += text
                last.content[0].logprobs += logprobs
                yield events.TextDelta(item_id=last.id, output_index=len(output) - 1, delta=text, logprobs=logprobs)
            case ReasoningText(text):
                if not isinstance(last, OutputReasoning):
                    yield from self._close("completed")
                    last = OutputReasoning(id=f"rs_{secrets.token_hex(12)}")
                    yield from self._open(last)
                last.content[0].text += text
                yield events.ReasoningDelta(item_id=last.id, output_index=len(output) - 1, delta=text)
            case _:
                if piece.name is not None:
                    yield from self._close("completed")
                    last = OutputCall(id=f"fc_{secrets.token_hex(12)}", call_id=new_call_id(), name=piece.name)
                    yield from self._open(last)
                assert isinstance(last, OutputCall)
                if piece.arguments:
                    last.arguments += piece.arguments
                    yield events.ArgumentsDelta(item_id=last.id, output_index=len(output) - 1, delta=piece.arguments)

    def _open(self, item: OutputMessage | OutputReasoning | OutputCall) -> Iterator[events.Event]:
        self._response.output.append(item)
        index = len(self._response.output) - 1
        yield events.ItemAdded(output_index=index, item=item)
        match item:
            case OutputMessage(content=parts):
                parts.append(OutputText())
                yield events.PartAdded(item_id=item.id, output_index=index, part=parts[0])
            case OutputReasoning(content=thoughts):
                thoughts.append(ReasoningContent())
                yield events.PartAdded(item_id=item.id, output_index=index, part=thoughts[0])

    def _close(self, status: str) -> Iterator[events.Event]:
        """End the item that is open, if one is."""
        output = self._response.output
        if not output or output[-1].status != "in_progress":
            return
        item, index = output[-1], len(output) - 1
        item.status = status
        match item:
            case OutputMessage(content=[part]):
                yield events.TextDone(item_id=item.id, output_index=index, text=part.text, logprobs=part.logprobs)
                yield events.PartDone(item_id=item.id, output_index=index, part=part)
            case OutputReasoning(content=[thought]):
                yield events.ReasoningDone(item_id=item.id, output_index=index, text=thought.text)
                yield events.PartDone(item_id=item.id, output_index=index, part=thought)
            case OutputCall():
                yield events.ArgumentsDone(
                    item_id=item.id, output_index=index, name=item.name, arguments=item.arguments
                )
        yield events.ItemDone(output_index=index, item=item)

    def _end(self, *, cut_off: bool) -> Iterator[events.Event]:
        response = self._response
        if not response.output:  # the model ended at once, which is an empty text
            yield from self._open(OutputMessage(id=f"msg_{secrets.token_hex(12)}"))
        yield from self._close("incomplete" if cut_off else "completed")
        response.usage = _usage(self._answer.usage())
        if cut_off:
            response.status = "incomplete"
            response.incomplete_details = IncompleteDetails("max_output_tokens")
            yield events.Incomplete(response=response)
        else:
            response.status = "completed"
            response.completed_at = int(time.time())
            yield events.Completed(response=response)


def _opening(model: ServedModel, request: ResponseRequest) -> Response:
    default = model.llm.get_default_sampling_params()
    text = request.text or TextOptions()
    return Response(
        id=f"resp_{secrets.token_hex(12)}",
        created_at=int(time.time()),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=model.name,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning=request.reasoning or ReasoningOptions(),
        temperature=default.temperature if request.temperature is None else request.temperature,
        text=msgspec.structs.replace(text, format=text.format or PlainTextForm()),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_p=default.top_p if request.top_p is None else request.top_p,
        user=request.user,
    )


def _usage(used: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=used.prompt_tokens,
        input_tokens_details=InputDetails(used.prompt_tokens_details.cached_tokens),
        output_tokens=used.completion_tokens,
        output_tokens_details=OutputDetails(used.completion_tokens_details.reasoning_tokens),
        total_tokens=used.total_tokens,
    )
