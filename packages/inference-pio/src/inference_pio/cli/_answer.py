"""One answer: streamed to standard output, and summed up for people or programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from inference_pio.cli._memory import peak_rss_bytes
from inference_pio.cli._output import as_size, note, write, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inference_pio.core import LLM
    from inference_pio.interfaces import RequestOutput, TokenEvent


class Stream(Protocol):
    """A running request, as ``LLM.stream`` and ``LLM.chat_stream`` give it."""

    @property
    def output(self) -> RequestOutput:
        """What it has come to so far."""

    def close(self) -> None:
        """Cancel what is unfinished."""

    def __iter__(self) -> Iterator[TokenEvent]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a prompt.

    Attributes:
        output: Text, tokens and metrics, as far as it went.
        interrupted: Whether the user stopped it.
    """

    output: RequestOutput
    interrupted: bool

    @property
    def text(self) -> str:
        """The text."""
        return self.output.outputs[0].text


def follow(stream: Stream, show: Callable[[TokenEvent], None], *, stop: Callable[[], bool] = lambda: False) -> Answer:
    """Go through the answer; Ctrl-C ends it where it is, and so does ``stop``, asked after each token."""
    interrupted = False
    try:
        for event in stream:
            show(event)
            if stop():
                interrupted = not stream.output.finished
                break
    except KeyboardInterrupt:
        interrupted = True
    finally:
        stream.close()
    return Answer(output=stream.output, interrupted=interrupted)


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


def as_object(llm: LLM, answer: Answer) -> dict[str, object]:
    """The object that ``--json`` writes; a figure that there is none for is null."""
    output = answer.output
    completion = output.outputs[0]
    return {
        "model": llm.name,
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "executor": llm.executor,
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": len(completion.token_ids),
            "cached_tokens": _cached(output),
        },
        "timings": timings(llm, answer),
    }


def timings(llm: LLM, answer: Answer) -> dict[str, float | int | None]:
    """Seconds, tokens per second and bytes."""
    output = answer.output
    metrics = output.metrics
    prompt_tokens = len(output.prompt_token_ids) - _cached(output)  # those that were read
    completion_tokens = len(output.outputs[0].token_ids)
    return {
        "load_s": llm.load_s,
        "ttft_s": metrics.ttft_s if metrics else None,
        "prefill_tokens_per_s": _rate(prompt_tokens, metrics.prefill_s) if metrics else None,
        # The first token comes from prefill, so the time between the first and the last is that of the others.
        "decode_tokens_per_s": _rate(completion_tokens - 1, metrics.decode_s) if metrics else None,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def tell_stats(llm: LLM, answer: Answer) -> None:
    """The same on one line of standard error."""
    figures = timings(llm, answer)
    prompt, completion = len(answer.output.prompt_token_ids), answer.output.outputs[0]
    cached = _cached(answer.output)
    found = f" ({cached} cached)" if cached else ""
    parts = [f"{prompt} prompt tokens{found}, {len(completion.token_ids)} new ({completion.finish_reason})"]
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
    parts.append(llm.executor_summary)
    note(" | ".join(parts))


def _cached(output: RequestOutput) -> int:
    """Tokens of the prompt that were in the cache already, such as those of the turns before."""
    return output.metrics.cached_tokens if output.metrics else 0


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
