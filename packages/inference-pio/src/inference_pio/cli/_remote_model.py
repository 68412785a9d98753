"""A model behind an OpenAI-compatible server, as one side of a conversation."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from inference_pio.cli._answer import Result
from inference_pio.cli._http import HttpServer
from inference_pio.cli._http_errors import ServerError, told
from inference_pio.cli._settings import SAMPLING_KEYS, SAMPLING_SETTINGS, sampling_params
from inference_pio.interfaces import ConfigError, ModelNotFoundError, RequestMetrics, SamplingParams, TokenEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from inference_pio.cli._endpoint import Endpoint
    from inference_pio.cli._http import EventReader
    from inference_pio.config import Settings

CHAT = "/chat/completions"
_DONE = "[DONE]"
_LISTED = 12
# How models that reason write it themselves, so that it looks as it does where the model is in this process.
_THINKS, _HAS_THOUGHT = "<think>\n", "\n</think>\n\n"


def remote_model(endpoint: Endpoint, name: str | None, say: Callable[[str], None]) -> RemoteModel:
    """The model ``name`` of a server; without a name, the only one that it has.

    Args:
        endpoint: The server.
        name: What requests call the model, or None.
        say: Called with what there is to say while it is waited for.

    Raises:
        PioError: There is no such model, no server, or no telling which model is meant.
    """
    server = HttpServer(endpoint, say)
    if name is not None:
        return RemoteModel(server, name)
    names = _model_names(server)
    if len(names) == 1:
        return RemoteModel(server, names[0])
    if not names:
        raise ConfigError(f"{endpoint.url} does not say which models it has", hint="name one by --model")
    raise ConfigError(f"{endpoint.url} has {len(names)} models", hint=f"choose by --model: {_listed(names)}")


class RemoteModel:
    """A model elsewhere.

    Args:
        server: Where it is.
        name: What requests call it.

    Attributes:
        name: The same.
        executor: None: what computes it is the server's business.
        load_s: None, likewise.
        stops_at_once: True: what has not come yet need not be waited for.
    """

    executor = None
    load_s = None
    stops_at_once = True

    def __init__(self, server: HttpServer, name: str) -> None:
        self.name = name
        self._server = server

    @property
    def executor_summary(self) -> str:
        """Where it is."""
        return f"{self.name} at {self._server.endpoint.url}"

    @property
    def described(self) -> RemoteModel:
        """Itself."""
        return self

    def parameters(self, settings: Settings, said: Mapping[str, object]) -> dict[str, object]:
        """As ``ChatModel`` says; what was not said is for the server to choose."""
        chosen = _chosen(settings, said)
        return {key: chosen.get(key, "(the server's)") for key in sorted(SAMPLING_KEYS)}

    def answer(
        self, messages: Sequence[Mapping[str, str]], settings: Settings, said: Mapping[str, object]
    ) -> RemoteStream:
        """As ``ChatModel`` says."""
        body = {
            "model": self.name,
            "messages": list(messages),
            **{key: value for key, value in _chosen(settings, said).items() if value is not None},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asked = time.perf_counter()
        try:
            return RemoteStream(self._server.stream(CHAT, body), asked)
        except ModelNotFoundError as error:
            names = _model_names(self._server)
            if not names or self.name in names:
                raise
            raise ModelNotFoundError(
                f"{self._server.endpoint.url} has no model {self.name!r}", hint=f"it has {_listed(names)}"
            ) from error


class RemoteStream:
    """An answer on its way.

    Args:
        events: What the server sends.
        asked: When it was asked, by ``time.perf_counter``.
    """

    def __init__(self, events: EventReader, asked: float) -> None:
        self._events = events
        self._asked = asked
        self._first: float | None = None
        self._last = asked
        self._content: list[str] = []
        self._thinks = False
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] = {}

    def result(self) -> Result:
        """What it has come to so far. Its text is what was said after any reasoning."""
        details = self._usage.get("prompt_tokens_details")
        metrics = None
        if self._first is not None:
            metrics = RequestMetrics(
                queue_s=0.0, ttft_s=self._first - self._asked, prefill_s=0.0, decode_s=self._last - self._first
            )
        return Result(
            text="".join(self._content),
            token_ids=None,
            finish_reason=self._finish_reason or "abort",
            prompt_tokens=_count(self._usage, "prompt_tokens"),
            completion_tokens=_count(self._usage, "completion_tokens"),
            cached_tokens=(_count(details, "cached_tokens") or 0) if isinstance(details, dict) else 0,
            metrics=metrics,
            finished=self._finish_reason is not None,
        )

    def close(self) -> None:
        """End the connection, and with it what is unfinished."""
        self._events.close()

    def __iter__(self) -> Iterator[TokenEvent]:
        """Pieces of text.

        Raises:
            ServerError: The server failed, or broke off.
        """
        for data in self._events:
            if data.strip() == _DONE:
                break
            if text := self._take(_object(data)):
                yield TokenEvent(request_id="", index=0, token_id=None, text=text)
        if self._finish_reason is None:
            raise ServerError("the server broke off within the answer", hint="look at the server's log")

    def _take(self, chunk: dict[str, Any]) -> str:
        """Note what a chunk says; the text to show for it."""
        if "error" in chunk:
            raise ServerError(f"the server failed within the answer: {told(chunk) or 'it does not say why'}")
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return ""
        choice, delta = choices[0], choices[0].get("delta")
        shown = self._shown(delta) if isinstance(delta, dict) else ""
        if shown:
            self._last = time.perf_counter()
            self._first = self._first or self._last
        if isinstance(choice.get("finish_reason"), str):
            self._finish_reason = choice["finish_reason"]
            if self._thinks:
                self._thinks = False
                shown += _HAS_THOUGHT.rstrip()
        return shown

    def _shown(self, delta: dict[str, Any]) -> str:
        # Servers have two names for it; where both come, they are the same text.
        reasoning, content = delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")
        shown = ""
        if isinstance(reasoning, str) and reasoning:
            shown = reasoning if self._thinks else _THINKS + reasoning
            self._thinks = True
        if isinstance(content, str) and content:
            self._content.append(content)
            shown += _HAS_THOUGHT + content if self._thinks else content
            self._thinks = False
        return shown


def _chosen(settings: Settings, said: Mapping[str, object]) -> dict[str, object]:
    """Sampling parameters that somebody chose, checked as a model in this process would.

    Raises:
        InvalidRequestError: A value of the wrong type or out of bounds.
    """
    sampling_params(settings, said, SamplingParams())
    found = {name: getattr(settings, name) for name in SAMPLING_SETTINGS}
    return {name: value for name, value in found.items() if value is not None} | dict(said)


def _model_names(server: HttpServer) -> list[str]:
    """What the server lists; nothing where it has no list."""
    try:
        document = server.get("/models")
    except ModelNotFoundError:
        return []
    cards = document.get("data") if isinstance(document, dict) else None
    ids = [card.get("id") for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
    return [name for name in ids if isinstance(name, str)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name[:200] for name in names[:_LISTED]) + more


def _object(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"the server sends an event that is no JSON object: {data[:80]!r}")
    return value


def _count(values: dict[str, Any], name: str) -> int | None:
    found = values.get(name)
    return found if isinstance(found, int) else None
