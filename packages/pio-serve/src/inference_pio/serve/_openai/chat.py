"""``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from inference_pio.interfaces import FinishReason
from inference_pio.processing import TextDelta, ToolCallDelta
from inference_pio.serve._errors import invalid
from inference_pio.serve._generation import Generation
from inference_pio.serve._json import json_response
from inference_pio.serve._openai.chat_types import (
    AnswerMessage,
    CallFunction,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCall,
    ToolCallPiece,
    ToolChoice,
)
from inference_pio.serve._openai.choice_reader import ChoiceReader, ReasoningText
from inference_pio.serve._openai.conversation import render
from inference_pio.serve._openai.logprobs import chat_logprob, names_token
from inference_pio.serve._openai.sampling import sampling_params, structured_outputs
from inference_pio.serve._openai.usage import usage
from inference_pio.serve._sse import EventStream, TextFrames, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from inference_pio.interfaces import SamplingParams, StructuredOutputs, TokenEvent
    from inference_pio.serve._call import Call
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._openai.chat_types import PositionLogprob, Tool
    from inference_pio.serve._openai.choice_reader import Piece
    from inference_pio.serve._openai.conversation import Prompt
    from inference_pio.serve._openai.usage import Usage
    from inference_pio.serve._settings import Bounds


async def chat_completions(call: Call) -> ASGIApp:
    """Answer a conversation.

    Raises:
        ApiError: The request cannot be served.
        PioError: The same, in the core's words.
    """
    request = call.read(ChatRequest)
    model = await call.model(request.model)
    answer = await begin(call, model, request)
    if request.stream:
        return EventStream(
            answer.frames(with_usage=request.wants_usage), keep_alive_s=call.server.settings.keep_alive_s
        )
    return json_response(await answer.whole())


async def begin(call: Call, model: ServedModel, request: ChatRequest) -> ChatAnswer:
    """Hand a conversation to the engine; it is cancelled when the call ends.

    Raises:
        ApiError: The request cannot be served.
        PioError: The same, in the core's words.
    """
    settings = call.server.settings
    tools = _usable_tools(request, model)
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    prompt = await render(
        model,
        settings,
        request.messages,
        tools=tools,
        template_kwargs=variables,
        add_generation_prompt=request.add_generation_prompt is not False,
    )
    params = _params(request, model, settings.bounds, _form(request, model, settings.bounds, tools, prompt))
    readers = [_reader(model, prompt, tools=bool(tools)) for _ in range(params.n)]
    engine_request = model.llm.make_request(
        {"prompt_token_ids": prompt.token_ids},
        params,
        timeout_s=call.time_left_s,
        cache_salt=call.key_id,
    )
    generation = await call.cleanup.enter_async_context(Generation(call, model, [engine_request]))
    top = None if not request.logprobs else request.top_logprobs or 0
    return ChatAnswer(generation, model, readers, prompt_tokens=len(prompt.token_ids), top_logprobs=top)


def _usable_tools(request: ChatRequest, model: ServedModel) -> list[Tool]:
    """The tools that may be called; none where calls may not come.

    Raises:
        ApiError: Calls are asked for that cannot come.
    """
    forced = isinstance(request.tool_choice, ToolChoice) or request.tool_choice == "required"
    if not request.tools:
        if forced:
            raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")
        return []
    if request.tool_choice == "none":
        return []
    if model.llm.tool_call_parser() is None:
        raise invalid(f"model {model.name!r} calls no tools", "tools", code="unsupported")
    return request.tools


def _form(
    request: ChatRequest, model: ServedModel, bounds: Bounds, tools: list[Tool], prompt: Prompt
) -> StructuredOutputs | None:
    """The form that the answer must have: that of calls, or the one that was asked for, after any reasoning.

    Raises:
        ApiError: Both are asked for, or the form is beyond the bounds.
        InvalidRequestError: Tools or choice are malformed.
    """
    form = structured_outputs(request, bounds)
    choice = request.tool_choice or "auto"
    if form is not None:
        if tools and choice != "auto":
            raise invalid("tool_choice asks for a call, and another form is asked for", "tool_choice")
        return model.llm.after_reasoning(form, prompt.text)
    if not tools:
        return None
    return model.llm.tool_call_grammar(
        [msgspec.to_builtins(tool) for tool in tools],
        tool_choice=choice if isinstance(choice, str) else msgspec.to_builtins(choice),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        prompt_text=prompt.text,
    )


def _params(request: ChatRequest, model: ServedModel, bounds: Bounds, form: StructuredOutputs | None) -> SamplingParams:
    if request.max_tokens is not None and request.max_completion_tokens not in {None, request.max_tokens}:
        raise invalid("max_tokens and max_completion_tokens differ: give one of them", "max_completion_tokens")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs needs 'logprobs' to be true", "top_logprobs")
    asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return sampling_params(request, model, bounds, max_tokens=asked, logprobs=logprobs, structured=form)


def _reader(model: ServedModel, prompt: Prompt, *, tools: bool) -> ChoiceReader:
    return ChoiceReader(model.llm.reasoning_parser(prompt.text), model.llm.tool_call_parser() if tools else None)


@dataclass(slots=True)
class _Collected:
    """What has come of one answer."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[PositionLogprob] = field(default_factory=list)
    finish_reason: str = "stop"

    def add(self, piece: Piece) -> None:
        match piece:
            case TextDelta(text):
                self.content.append(text)
            case ReasoningText(text):
                self.reasoning.append(text)
            case ToolCallDelta(name=str(name)):
                self.calls.append(ToolCall(new_call_id(), CallFunction(name, piece.arguments)))
            case ToolCallDelta():
                self.calls[piece.index].function.arguments += piece.arguments

    def message(self) -> AnswerMessage:
        content = "".join(self.content)
        return AnswerMessage(
            content=content if content or not self.calls else None,
            reasoning_content="".join(self.reasoning) or None,
            tool_calls=self.calls or UNSET,
        )


class ChatAnswer:
    """The answers to one conversation, whole or as they come. Read once.

    Args:
        generation: Brings the tokens.
        model: Whose they are.
        readers: One for each answer.
        prompt_tokens: Of the prompt.
        top_logprobs: Candidates to list at each place; None lists no log-probabilities.
    """

    def __init__(
        self,
        generation: Generation,
        model: ServedModel,
        readers: list[ChoiceReader],
        *,
        prompt_tokens: int,
        top_logprobs: int | None,
    ) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._generation = generation
        self._model = model
        self._readers = readers
        self._prompt_tokens = prompt_tokens
        self._top = top_logprobs
        self._tokens = 0
        self._cached = 0

    async def pieces(self) -> AsyncIterator[tuple[TokenEvent, list[Piece], str | None]]:
        """Each token, what it brings to its answer, and why the answer ended with it, if it did.

        Raises:
            PioError: The request failed.
            ApiError: The server stopped first.
        """
        async for _, event in self._generation.events():
            pieces, finish_reason = self._read(event)
            yield event, pieces, finish_reason

    async def whole(self) -> ChatCompletion:
        """All of it.

        Raises:
            PioError: The request failed.
            ApiError: The server stopped first.
        """
        collected = [_Collected() for _ in self._readers]
        async for event, pieces, finish_reason in self.pieces():
            answer = collected[event.index]
            for piece in pieces:
                answer.add(piece)
            if (entry := self._logprob(event)) is not None:
                answer.logprobs.append(entry)
            if finish_reason is not None:
                answer.finish_reason = finish_reason
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self._model.name,
            choices=[
                ChatChoice(
                    index=index,
                    message=answer.message(),
                    logprobs=None if self._top is None else ChatLogprobs(answer.logprobs),
                    finish_reason=answer.finish_reason,
                )
                for index, answer in enumerate(collected)
            ],
            usage=self.usage(),
        )

    async def frames(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Chunks as they come; the one that names the role comes with the first token, whose time clients take by it.

        Args:
            with_usage: Whether the last chunk holds the usage, and the others say that they do not.

        Raises:
            PioError: The request failed.
            ApiError: The server stopped first.
        """
        chunk = ChatChunk(
            id=self.id, created=self.created, model=self._model.name, choices=[], usage=None if with_usage else UNSET
        )
        silent = set(range(len(self._readers)))
        quick: list[TextFrames | None] = [None] * len(self._readers)
        async for _, event in self._generation.events():
            text_frames = quick[event.index]
            if text_frames is not None and event.finish_reason is None:
                self._tokens += 1
                if event.text:
                    yield text_frames(event.text)
                continue
            if event.index in silent:
                silent.remove(event.index)
                chunk.choices = [ChunkChoice(event.index, Delta(role="assistant", content=""))]
                yield frame(chunk)
                quick[event.index] = self._text_frames(chunk, event.index)
            pieces, finish_reason = self._read(event)
            for choice in self._chunk_choices(event, pieces):
                chunk.choices = [choice]
                yield frame(chunk)
            if finish_reason is not None:
                chunk.choices = [ChunkChoice(event.index, Delta(), None, finish_reason)]
                yield frame(chunk)
        if with_usage:
            chunk.choices = []
            chunk.usage = self.usage()
            yield frame(chunk)

    def usage(self) -> Usage:
        """Tokens so far."""
        return usage(
            prompt=self._prompt_tokens,
            completion=self._tokens,
            cached=self._cached,
            reasoning=sum(reader.reasoning_tokens for reader in self._readers),
        )

    def _read(self, event: TokenEvent) -> tuple[list[Piece], str | None]:
        """What a token brings to its answer, and why the answer ended with it, if it did."""
        if event.token_id is not None:
            self._tokens += 1
        if event.metrics is not None:
            self._cached = event.metrics.cached_tokens
        reader = self._readers[event.index]
        last = event.finish_reason is not None
        return reader.push(event.text, last=last), _finish_reason(event.finish_reason, reader) if last else None

    def _text_frames(self, chunk: ChatChunk, index: int) -> TextFrames | None:
        """Chunks of an answer that go on with text; None where more than text may come."""
        if self._top is not None or not self._readers[index].is_plain:
            return None

        def make(text: str) -> ChatChunk:
            return msgspec.structs.replace(chunk, choices=[ChunkChoice(index, Delta(content=text))])

        return TextFrames(make)

    def _chunk_choices(self, event: TokenEvent, pieces: list[Piece]) -> list[ChunkChoice]:
        choices = [ChunkChoice(event.index, as_delta(piece)) for piece in pieces]
        entry = self._logprob(event)
        if entry is not None:
            if not choices:  # its text is held back; what was measured is not
                choices = [ChunkChoice(event.index, Delta(content=""))]
            choices[0].logprobs = ChatLogprobs([entry])
        return choices

    def _logprob(self, event: TokenEvent) -> PositionLogprob | None:
        if self._top is None or not names_token(event):
            return None
        return chat_logprob(event, self._model.llm.get_tokenizer(), self._top)


def as_delta(piece: Piece) -> Delta:
    """A piece on the wire."""
    match piece:
        case TextDelta(text):
            return Delta(content=text)
        case ReasoningText(text):
            return Delta(reasoning_content=text)
    if piece.name is None:
        return Delta(tool_calls=[ToolCallPiece(index=piece.index, function=FunctionDelta(arguments=piece.arguments))])
    function = FunctionDelta(name=piece.name, arguments=piece.arguments)
    return Delta(tool_calls=[ToolCallPiece(index=piece.index, id=new_call_id(), type="function", function=function)])


def new_call_id() -> str:
    """What the answer of a tool refers to."""
    return f"call_{secrets.token_hex(12)}"


def _finish_reason(reason: FinishReason | None, reader: ChoiceReader) -> str:
    if reason is FinishReason.STOP:
        return "tool_calls" if reader.has_calls else "stop"
    return "length"  # its own bound, the end of the context, or the server's bound on time
