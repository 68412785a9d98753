"""One request of a load test: when it was sent, when its pieces came, and how many tokens they were."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["running", "completed", "failed"]


@dataclass(slots=True)
class Timeline:
    """What happened to one request, in seconds of :func:`time.perf_counter`; filled in by whoever sends it.

    A chunk is what comes in one event of a stream. It may carry several tokens (speculation, a slow reader), or none
    that can be read yet (half a character, a special token). As in vLLM's benchmark every chunk with a choice counts
    for the times, and the server's ``usage`` says how many tokens they were.

    Attributes:
        due: When the request was to be sent.
        start: When it was sent; later than ``due`` where it had to wait for its turn.
        chunks: When each chunk came.
        first_text: When the first chunk with text, reasoning or a tool call came; None without one.
        text_chunks: How many chunks carried any.
        prompt_tokens: Tokens of the prompt as the server counted them; None if it does not tell.
        output_tokens: Tokens of the answer, the same.
        state: Whether it has ended, and how.
        error: Why it failed, on one line.
    """

    due: float = 0.0
    start: float = 0.0
    chunks: list[float] = field(default_factory=list)
    first_text: float | None = None
    text_chunks: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    state: State = "running"
    error: str = ""

    def note_chunk(self, at: float, *, text: bool) -> None:
        """A chunk came at ``at``, with text or without."""
        self.chunks.append(at)
        if text:
            self.text_chunks += 1
            if self.first_text is None:
                self.first_text = at

    def drop_opening(self) -> None:
        """Forget the chunks that came before the first text: of a chat, the one that only says who speaks."""
        if self.first_text is not None:
            self.chunks = [at for at in self.chunks if at >= self.first_text]

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first chunk."""
        return self.chunks[0] - self.start

    @property
    def latency(self) -> float:
        """Seconds from sending to the last chunk; the final message with the usage carries no token and is none."""
        return self.chunks[-1] - self.start

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks."""
        return [later - earlier for earlier, later in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def length(self) -> int:
        """Tokens of the answer; where the server does not tell, the chunks that carried text, and at least one."""
        return self.output_tokens or max(self.text_chunks, 1)

    @property
    def queued(self) -> float:
        """Seconds that it waited on this side for its turn."""
        return self.start - self.due
