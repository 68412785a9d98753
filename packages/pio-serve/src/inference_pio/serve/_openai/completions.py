"""``POST /v1/completions``."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from inference_pio.interfaces import FinishReason
from inference_pio.serve._errors import invalid
from inference_pio.serve._generation import Generation
from inference_pio.serve._json import json_response
from inference_pio.serve._openai.completion_types import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from inference_pio.serve._openai.conversation import Prompt, beside
from inference_pio.serve._openai.logprobs import CompletionLogprobList, names_token
from inference_pio.serve._openai.sampling import sampling_params, structured_outputs
from inference_pio.serve._openai.usage import usage
from inference_pio.serve._sse import EventStream, TextFrames, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from inference_pio.interfaces import SamplingParams, TokenEvent
    from inference_pio.processing import Tokenizer
    from inference_pio.serve._call import Call
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._openai.usage import Usage

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint alone."""
_MAX_LOGPROBS = 20


async def completions(call: Call) -> ASGIApp:
    """Continue prompts.

    Raises:
        ApiError: The request cannot be served.
        PioError: The same, in the core's words.
    """
    request = call.read(CompletionRequest)
    model = await call.model(request.model)
    settings = call.server.settings
    prompts = await _prompts(request, model, settings.bounds.prompts)
    params = _params(call, model, request)
    generation = Generation(
        call,
        model,
        [
            model.llm.make_request(
                {"prompt_token_ids": prompt.token_ids},
                params,
                timeout_s=call.time_left_s,
                cache_salt=call.key_id,
            )
            for prompt in prompts
        ],
    )
    await call.cleanup.enter_async_context(generation)
    answer = TextAnswer(generation, model, prompts, request, n=params.n)
    if request.stream:
        return EventStream(answer.frames(with_usage=request.wants_usage), keep_alive_s=settings.keep_alive_s)
    return json_response(await answer.whole())


async def _prompts(request: CompletionRequest, model: ServedModel, most: int) -> list[Prompt]:
    """The prompts as tokens.

    Raises:
        ApiError: None, too many, or a list of several kinds.
    """
    given = request.prompt
    several: list[str | list[int]]
    if isinstance(given, str):
        several = [given]
    elif given and all(isinstance(item, int) for item in given):
        several = [[item for item in given if isinstance(item, int)]]
    elif any(isinstance(item, int) for item in given):
        raise invalid("prompt must be text, token ids, or a list of either", "prompt")
    else:
        several = [item for item in given if not isinstance(item, int)]
    if not 1 <= len(several) <= most:
        raise invalid(f"prompt must hold 1 to {most} prompts, got {len(several)}", "prompt")
    special = request.add_special_tokens is not False
    prompts = []
    for item in several:
        if isinstance(item, str):
            text, tokenizer = item, model.llm.get_tokenizer()

            def make(text: str = text, tokenizer: Tokenizer = tokenizer) -> Prompt:
                return Prompt(tokenizer.encode(text, add_special_tokens=special), text)

            prompts.append(await beside(make, len(text)))
        else:
            text = model.llm.get_tokenizer().decode(item, skip_special_tokens=False) if request.echo else ""
            prompts.append(Prompt(item, text))
    return prompts


def _params(call: Call, model: ServedModel, request: CompletionRequest) -> SamplingParams:
    bounds = call.server.settings.bounds
    if request.suffix:
        raise invalid("suffix is not supported: text cannot be inserted", "suffix", code="unsupported")
    if request.best_of not in {None, 1, request.n}:
        raise invalid(f"best_of is not supported beyond n, got {request.best_of}", "best_of", code="unsupported")
    if request.logprobs is not None and not 0 <= request.logprobs <= _MAX_LOGPROBS:
        raise invalid(f"logprobs must be between 0 and {_MAX_LOGPROBS}, got {request.logprobs}", "logprobs")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and not request.echo:
        raise invalid("max_tokens 0 needs 'echo'", "max_tokens")
    return sampling_params(
        request,
        model,
        bounds,
        max_tokens=max(max_tokens, 1) if max_tokens == 0 else max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
        structured=structured_outputs(request, bounds),
    )


@dataclass(slots=True)
class _Collected:
    """What has come of one text."""

    text: list[str] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    finish_reason: str = "length"


class TextAnswer:
    """Continuations of prompts, whole or as they come. Read once.

    Args:
        generation: Brings the tokens.
        model: Whose they are.
        prompts: The prompts, in the order of the generation's requests.
        request: What was asked for.
        n: Continuations of each prompt.
    """

    def __init__(
        self, generation: Generation, model: ServedModel, prompts: list[Prompt], request: CompletionRequest, *, n: int
    ) -> None:
        self._generation = generation
        self._model = model
        self._prompts = prompts
        self._n = n
        self._echo = bool(request.echo)
        # To look at a prompt without continuing it, one token is computed and left out.
        self._echo_only = self._echo and request.max_tokens == 0
        self._top = request.logprobs
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._tokens = 0
        self._cached: dict[int, int] = {}

    async def events(self) -> AsyncIterator[tuple[int, TokenEvent, str | None]]:
        """Which choice, its next token, and why it ended with it, if it did.

        Raises:
            PioError: A request failed.
            ApiError: The server stopped first.
        """
        async for place, event in self._generation.events():
            yield place * self._n + event.index, event, self._read(place, event)

    async def whole(self) -> Completion:
        """All of it.

        Raises:
            PioError: A request failed.
            ApiError: The server stopped first.
        """
        collected = [_Collected() for _ in range(len(self._prompts) * self._n)]
        async for index, event, finish_reason in self.events():
            one = collected[index]
            if not self._echo_only:
                one.text.append(event.text)
                one.events.append(event)
            if finish_reason is not None:
                one.finish_reason = finish_reason
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model.name,
            choices=[
                CompletionChoice(
                    index=index,
                    text=self._prefix(index) + "".join(one.text),
                    logprobs=self._whole_logprobs(index, one),
                    finish_reason=one.finish_reason,
                )
                for index, one in enumerate(collected)
            ],
            usage=self._usage(),
        )

    async def frames(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Pieces as they come.

        Args:
            with_usage: Whether the last piece holds the usage, and the others say that they do not.

        Raises:
            PioError: A request failed.
            ApiError: The server stopped first.
        """
        piece = Completion(
            id=self._id, created=self._created, model=self._model.name, choices=[], usage=None if with_usage else UNSET
        )
        lists = [self._logprob_list() for _ in range(len(self._prompts) * self._n)]
        echoes = set(range(len(lists))) if self._echo else set()
        quick = [
            None if self._echo or self._top is not None else _text_frames(piece, index) for index in range(len(lists))
        ]
        async for place, event in self._generation.events():
            index = place * self._n + event.index
            text_frames = quick[index]
            if text_frames is not None and event.finish_reason is None:
                self._tokens += 1
                if event.text:
                    yield text_frames(event.text)
                continue
            finish_reason = self._read(place, event)
            found = lists[index]
            if index in echoes:  # before its first token, with which the log-probabilities of the prompt come
                echoes.remove(index)
                piece.choices = [self._echoed(index, found)]
                yield frame(piece)
            text = "" if self._echo_only else event.text
            logprobs = None
            if found is not None and names_token(event) and not self._echo_only:
                assert event.token_id is not None
                found.add(event.token_id, event.logprobs)
                logprobs = found.take()
            if text or logprobs is not None or finish_reason is not None:
                piece.choices = [
                    CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish_reason)
                ]
                yield frame(piece)
        if with_usage:
            piece.choices = []
            piece.usage = self._usage()
            yield frame(piece)

    def _read(self, place: int, event: TokenEvent) -> str | None:
        """Count a token; why its text ended with it, if it did."""
        if event.token_id is not None and not self._echo_only:
            self._tokens += 1
        if event.metrics is not None:
            self._cached[place] = event.metrics.cached_tokens
        if event.finish_reason is None:
            return None
        return "length" if self._echo_only else _finish_reason(event.finish_reason)

    def _prefix(self, index: int) -> str:
        return self._prompts[index // self._n].text if self._echo else ""

    def _logprob_list(self) -> CompletionLogprobList | None:
        if self._top is None:
            return None
        return CompletionLogprobList(self._model.llm.get_tokenizer(), self._top)

    def _echoed(self, index: int, found: CompletionLogprobList | None) -> CompletionChoice:
        """The prompt as the first piece of a text."""
        logprobs = None
        if found is not None:
            self._add_prompt(index, found)
            logprobs = found.take()
        return CompletionChoice(index=index, text=self._prefix(index), logprobs=logprobs, finish_reason=None)

    def _add_prompt(self, index: int, found: CompletionLogprobList) -> None:
        place = index // self._n
        found.add_prompt(self._prompts[place].token_ids, self._generation.prompt_logprobs(place))

    def _whole_logprobs(self, index: int, one: _Collected) -> CompletionLogprobs | None:
        found = self._logprob_list()
        if found is None:
            return None
        if self._echo:
            self._add_prompt(index, found)
        for event in one.events:
            if names_token(event):
                assert event.token_id is not None
                found.add(event.token_id, event.logprobs)
        return found.take()

    def _usage(self) -> Usage:
        prompt = sum(len(prompt.token_ids) for prompt in self._prompts)
        return usage(prompt=prompt, completion=self._tokens, cached=sum(self._cached.values()))


def _text_frames(piece: Completion, index: int) -> TextFrames:
    """Pieces of a text that go on with nothing else."""

    def make(text: str) -> Completion:
        choice = CompletionChoice(index=index, text=text, logprobs=None, finish_reason=None)
        return msgspec.structs.replace(piece, choices=[choice])

    return TextFrames(make)


def _finish_reason(reason: FinishReason) -> str:
    return "stop" if reason is FinishReason.STOP else "length"
