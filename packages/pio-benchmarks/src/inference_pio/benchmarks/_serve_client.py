"""A client of OpenAI-compatible servers that measures rather than reads."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

from inference_pio.benchmarks._serve_chunks import Chunk, ModelList, error_message
from inference_pio.benchmarks._serve_http_reply import HttpProtocolError
from inference_pio.benchmarks._serve_prompts import as_messages
from inference_pio.benchmarks._serve_sse import EventReader
from inference_pio.interfaces import ModelNotFoundError, PioError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_pio.benchmarks._serve_http import HttpClient
    from inference_pio.benchmarks._serve_http_reply import ReplyHead
    from inference_pio.benchmarks._serve_prompts import Prompt
    from inference_pio.benchmarks._serve_timeline import Timeline

Endpoint = Literal["completions", "chat"]

PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_LENGTHS: dict[Endpoint, str] = {"completions": "max_tokens", "chat": "max_completion_tokens"}
_MAX_BODY = 1 << 20


class ServerRefusedError(PioError):
    """The server answered with an error."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How answers are asked for.

    Attributes:
        endpoint: Which of the two.
        model: By its name on the server.
        ignore_eos: Go on to the length asked for; servers that do not know the word may refuse it.
        temperature: Of the sampling; None leaves it to the server.
        extra: Further fields of the request.
    """

    endpoint: Endpoint
    model: str
    ignore_eos: bool = True
    temperature: float | None = 0.0
    extra: Mapping[str, object] = field(default_factory=dict)


class OpenAIClient:
    """Sends prompts over HTTP.

    Args:
        http: The server.
        asking: How answers are asked for.
    """

    def __init__(self, http: HttpClient, asking: Asking) -> None:
        self._http = http
        self._asking = asking

    @property
    def model(self) -> str:
        """Name of the model on the server."""
        return self._asking.model

    async def send(self, prompt: Prompt, timeline: Timeline) -> None:
        """Stream an answer and note its times.

        Raises:
            PioError: It was refused, or ended in an error.
            TimeoutError: It took too long.
        """
        body = msgspec.json.encode(self.payload(prompt))
        stream = _Stream(timeline)
        timeline.start = time.perf_counter()
        head = await self._http.request("POST", PATHS[self._asking.endpoint], body, stream.take)
        stream.finish(head)

    def payload(self, prompt: Prompt) -> dict[str, object]:
        """The request's body."""
        asking = self._asking
        chat = asking.endpoint == "chat"
        fields: dict[str, object] = {
            **({"messages": as_messages(prompt.content)} if chat else {"prompt": prompt.content}),
            "model": asking.model,
            _LENGTHS[asking.endpoint]: prompt.output_len,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if asking.temperature is not None:
            fields["temperature"] = asking.temperature
        if asking.ignore_eos:
            fields["ignore_eos"] = True
        return fields | dict(asking.extra)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


async def list_models(http: HttpClient) -> list[str]:
    """The models that a server names.

    Raises:
        PioError: It cannot be reached, refuses, or answers something else.
    """
    body = bytearray()

    def take(_head: ReplyHead, data: bytes, _at: float) -> None:
        body.extend(data)
        if len(body) > _MAX_BODY:
            raise HttpProtocolError(f"the list of models has more than {_MAX_BODY} bytes")

    try:
        head = await http.request("GET", "/v1/models", b"", take)
    except TimeoutError as error:
        raise PioError(f"{http.url} does not answer", hint="is it still loading?") from error
    if head.status != 200:
        raise refusal(head, bytes(body))
    try:
        return [model.id for model in msgspec.json.decode(bytes(body), type=ModelList).data]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpProtocolError(
            f"{http.url}/v1/models answers something else than a list of models: {error}", hint="give --model"
        ) from error


def refusal(head: ReplyHead, body: bytes) -> PioError:
    """The error that a reply with this status means, with the way out."""
    said = error_message(body) or head.reason
    text = f"the server answers {head.status}" + (f": {said}" if said else "")
    match head.status:
        case 401 | 403:
            return ServerRefusedError(text, hint="give the key by --api-key-file or OPENAI_API_KEY")
        case 404:
            return ModelNotFoundError(text, hint="--model names one of /v1/models; --endpoint another path")
        case 429:
            after = head.headers.get("retry-after")
            wait = f"it asks to wait {after[:20]} s; " if after else ""
            return QueueFullError(text, hint=f"{wait}lower --max-concurrency or --request-rate")
        case 400 | 422 if "ignore_eos" in said:
            return ServerRefusedError(text, hint="leave it out by --no-ignore-eos")
        case 503:
            return ServerRefusedError(text, hint="is it still loading?")
    return ServerRefusedError(text)


class _Stream:
    """Reads one reply into a timeline."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._events = EventReader()
        self._decode = msgspec.json.Decoder(Chunk).decode
        self._error = bytearray()
        self._ended = False

    def take(self, head: ReplyHead, data: bytes, at: float) -> None:
        """A piece of the body."""
        if head.status != 200:
            self._error += data[: _MAX_BODY - len(self._error)]
            return
        for event in self._events.feed(data):
            self._take_event(event, at)

    def finish(self, head: ReplyHead) -> None:
        """The reply has ended.

        Raises:
            PioError: It was an error, or no whole answer.
        """
        if head.status != 200:
            raise refusal(head, bytes(self._error))
        for event in self._events.finish():
            self._take_event(event, time.perf_counter())
        if not self._timeline.chunks:
            raise HttpProtocolError("the stream ended without a token")
        if not self._ended:
            raise HttpProtocolError("the stream ended before the answer did")

    def _take_event(self, event: bytes, at: float) -> None:
        if event == b"[DONE]":
            self._ended = True
            return
        try:
            chunk = self._decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HttpProtocolError(f"the stream holds {event[:60]!r}, which is no chunk: {error}") from error
        if chunk.problem is not None:
            raise ServerRefusedError(f"the stream ends in an error: {chunk.problem}")
        if chunk.choices:
            choice = chunk.choices[0]
            self._timeline.note_chunk(at, text=choice.says_something)
            self._ended |= choice.finish_reason is not None
        if chunk.usage is not None:
            self._timeline.prompt_tokens = chunk.usage.prompt_tokens
            self._timeline.output_tokens = chunk.usage.completion_tokens
