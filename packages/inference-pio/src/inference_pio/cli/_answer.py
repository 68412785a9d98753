"""One answer: streamed to standard output, and summed up for people or programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from inference_pio.cli._memory import peak_rss_bytes
from inference_pio.cli._output import as_size, note, write, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inference_pio.core import TokenStream
    from inference_pio.interfaces import RequestMetrics, TokenEvent


class Described(Protocol):
    """What answers, as reports tell of it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def executor(self) -> str | None:
        """What computes it; None where that is elsewhere."""

    @property
    def executor_summary(self) -> str:
        """The same for people, or where it is."""

    @property
    def load_s(self) -> float | None:
        """How long loading took; None where that was elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a request has come to; a number that is not known is None.

    Attributes:
        text: The text.
        token_ids: Its tokens.
        finish_reason: Why it ended.
        prompt_tokens: Of the prompt.
        completion_tokens: Of the text.
        cached_tokens: Those of the prompt that were in the cache already, such as those of the turns before.
        metrics: Where the time went.
        finished: Whether it came to its own end.
    """

    text: str
    token_ids: list[int] | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int
    metrics: RequestMetrics | None
    finished: bool


class Stream(Protocol):
    """A running request."""

    def result(self) -> Result:
        """What it has come to so far."""

    def close(self) -> None:
        """Cancel what is unfinished."""

    def __iter__(self) -> Iterator[TokenEvent]: ...


class EngineStream:
    """A running request of a model in this process.

    Args:
        stream: As ``LLM.stream`` and ``LLM.chat_stream`` give it.
    """

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream

    def result(self) -> Result:
        """What it has come to so far."""
        output = self._stream.output
        completion = output.outputs[0]
        return Result(
            text=completion.text,
            token_ids=list(completion.token_ids),
            finish_reason=completion.finish_reason,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(completion.token_ids),
            cached_tokens=output.metrics.cached_tokens if output.metrics else 0,
            metrics=output.metrics,
            finished=output.finished,
        )

    def close(self) -> None:
        """Cancel what is unfinished."""
        self._stream.close()

    def __iter__(self) -> Iterator[TokenEvent]:
        return iter(self._stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a prompt.

    Attributes:
        result: Text, tokens and metrics, as far as it went.
        interrupted: Whether the user stopped it.
    """

    result: Result
    interrupted: bool

    @property
    def text(self) -> str:
        """The text."""
        return self.result.text


def follow(stream: Stream, show: Callable[[TokenEvent], None], *, stop: Callable[[], bool] = lambda: False) -> Answer:
    """Go through the answer; Ctrl-C ends it where it is, and so does ``stop``, asked after each token."""
    interrupted = False
    try:
        for event in stream:
            show(event)
            if stop():
                interrupted = not stream.result().finished
                break
    except KeyboardInterrupt:
        interrupted = True
    finally:
        stream.close()
    return Answer(result=stream.result(), interrupted=interrupted)


def stream_text(stream: Stream, *, stop: Callable[[], bool] = lambda: False) -> Answer:
    """Write the answer as it comes, and end the line; what was written stays when it is interrupted."""
    last = "\n"

    def show(event: TokenEvent) -> None:
        nonlocal last
        if event.text:
            write(event.text)
            last = event.text[-1]

    try:
        return follow(stream, show, stop=stop)
    finally:
        if last != "\n":
            write("\n")


def stream_json(stream: Stream) -> Answer:
    """Write one JSON document per token."""
    return follow(stream, lambda event: write_json({"token_id": event.token_id, "text": event.text}))


def collect(stream: Stream, *, stop: Callable[[], bool] = lambda: False) -> Answer:
    """Write nothing."""
    return follow(stream, lambda _event: None, stop=stop)


def as_object(model: Described, answer: Answer) -> dict[str, object]:
    """The object that ``--json`` writes; a figure that there is none for is null."""
    result = answer.result
    return {
        "model": model.name,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "executor": model.executor,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "cached_tokens": result.cached_tokens,
        },
        "timings": timings(model, answer),
    }


def timings(model: Described, answer: Answer) -> dict[str, float | int | None]:
    """Seconds, tokens per second and bytes."""
    result = answer.result
    metrics = result.metrics
    read = None if result.prompt_tokens is None else result.prompt_tokens - result.cached_tokens
    # The first token comes from prefill, so the time between the first and the last is that of the others.
    after_first = None if result.completion_tokens is None else result.completion_tokens - 1
    return {
        "load_s": model.load_s,
        "ttft_s": metrics.ttft_s if metrics else None,
        "prefill_tokens_per_s": _rate(read, metrics.prefill_s) if metrics else None,
        "decode_tokens_per_s": _rate(after_first, metrics.decode_s) if metrics else None,
        "peak_rss_bytes": None if model.executor is None else peak_rss_bytes(),
    }


def tell_stats(model: Described, answer: Answer) -> None:
    """The same on one line of standard error."""
    figures, result = timings(model, answer), answer.result
    parts = [_counts(result)]
    for text, key in (
        ("load {:.2f} s", "load_s"),
        ("first token {:.3f} s", "ttft_s"),
        ("prefill {:.1f} tokens/s", "prefill_tokens_per_s"),
        ("decode {:.1f} tokens/s", "decode_tokens_per_s"),
    ):
        if (figure := figures[key]) is not None:
            parts.append(text.format(figure))
    if (peak := figures["peak_rss_bytes"]) is not None:
        parts.append(f"peak memory {as_size(peak)}")
    parts.append(model.executor_summary)
    note(" | ".join(parts))


def _counts(result: Result) -> str:
    if result.prompt_tokens is None or result.completion_tokens is None:
        return f"tokens were not told ({result.finish_reason})"
    found = f" ({result.cached_tokens} cached)" if result.cached_tokens else ""
    return f"{result.prompt_tokens} prompt tokens{found}, {result.completion_tokens} new ({result.finish_reason})"


def _rate(tokens: int | None, seconds: float) -> float | None:
    return tokens / seconds if tokens is not None and tokens > 0 and seconds > 0 else None
